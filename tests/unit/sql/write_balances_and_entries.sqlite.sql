UPDATE accounts SET available = new_balances.available, seq = new_balances.seq
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.id') AS id,
    JSON_EXTRACT(record.value, '$.available') AS available,
    JSON_EXTRACT(record.value, '$.seq') AS seq
  FROM JSON_EACH(:new_balances_json) AS record
) AS new_balances
WHERE
  accounts.id = new_balances.id;

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
  :now AS at
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.account_id') AS account_id,
    JSON_EXTRACT(record.value, '$.seq') AS seq,
    JSON_EXTRACT(record.value, '$.amount') AS amount,
    JSON_EXTRACT(record.value, '$.balance_after') AS balance_after,
    JSON_EXTRACT(record.value, '$.cause') AS cause
  FROM JSON_EACH(:new_entries_json) AS record
) AS new_entries;
