WITH moved AS (
  UPDATE accounts SET available = (
    accounts.available + moves.amount
  ), debt = (
    accounts.debt + moves.debt
  ), seq = (
    accounts.seq + 1
  ), hash = ENCODE(
    SHA256(
      CONVERT_TO(
        accounts.hash || '|' || CAST(accounts.org_id AS VARCHAR) || '|' || CAST(accounts.id AS VARCHAR) || '|' || CAST(accounts.seq + 1 AS VARCHAR) || '|' || CAST(moves.amount AS VARCHAR) || '|' || CAST(accounts.available + moves.amount AS VARCHAR) || '|' || CAST(accounts.debt + moves.debt AS VARCHAR) || '|' || moves.cause_kind || '|' || moves.cause_id || '|' || CAST(%(at)s AS VARCHAR) || '|' || moves.content,
        'UTF8'
      )
    ),
    'hex'
  )
  FROM (
    SELECT
      record.org_id AS org_id,
      record.account_id AS account_id,
      record.amount AS amount,
      record.cause_kind AS cause_kind,
      record.cause_id AS cause_id,
      record.content AS content,
      record.debt AS debt
    FROM JSON_TO_RECORDSET(CAST(CAST(%(moves_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, account_id BIGINT, amount BIGINT, cause_kind VARCHAR(10), cause_id VARCHAR(72), content VARCHAR(64), debt BIGINT)
    LIMIT CAST(%(moves_count)s AS INT)
  ) AS moves
  WHERE
    accounts.org_id = moves.org_id
    AND accounts.id = moves.account_id
    AND accounts.available + moves.amount >= 0
  RETURNING accounts.org_id AS org_id, accounts.id AS account_id, accounts.seq AS seq, moves.amount AS amount, accounts.available AS balance_after, accounts.debt AS debt_after, moves.cause_kind AS cause_kind, moves.cause_id AS cause_id, moves.content AS content, accounts.hash AS hash
)
INSERT INTO entries (
  org_id,
  account_id,
  seq,
  amount,
  balance_after,
  debt_after,
  cause_kind,
  cause_id,
  content,
  hash,
  at
)
SELECT
  moved.org_id,
  moved.account_id,
  moved.seq,
  moved.amount,
  moved.balance_after,
  moved.debt_after,
  moved.cause_kind,
  moved.cause_id,
  moved.content,
  moved.hash,
  CAST(%(now)s AS TIMESTAMPTZ) AS at
FROM moved
RETURNING entries.org_id, entries.account_id;
