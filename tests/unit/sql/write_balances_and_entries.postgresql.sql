WITH moved_accounts AS (
  UPDATE accounts SET available = new_balances.available, seq = new_balances.seq
  FROM (
    SELECT
      record.id AS id,
      record.available AS available,
      record.seq AS seq
    FROM JSON_TO_RECORDSET(CAST(CAST(%(new_balances_json)s AS VARCHAR) AS JSON)) AS record(id BIGINT, available BIGINT, seq BIGINT)
    LIMIT CAST(%(new_balances_count)s AS INT)
  ) AS new_balances
  WHERE
    accounts.id = new_balances.id
)
INSERT INTO entries (
  account_id,
  seq,
  amount,
  balance_after,
  cause,
  at
)
SELECT
  new_entries.account_id,
  new_entries.seq,
  new_entries.amount,
  new_entries.balance_after,
  new_entries.cause,
  CAST(%(now)s AS TIMESTAMPTZ) AS at
FROM (
  SELECT
    record.account_id AS account_id,
    record.seq AS seq,
    record.amount AS amount,
    record.balance_after AS balance_after,
    record.cause AS cause
  FROM JSON_TO_RECORDSET(CAST(CAST(%(new_entries_json)s AS VARCHAR) AS JSON)) AS record(account_id BIGINT, seq BIGINT, amount BIGINT, balance_after BIGINT, cause VARCHAR(120))
  LIMIT CAST(%(new_entries_count)s AS INT)
) AS new_entries;
