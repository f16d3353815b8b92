UPDATE accounts SET available = (
  accounts.available + moves.amount
), debt = (
  accounts.debt + moves.debt
), seq = (
  accounts.seq + 1
), hash = SHA256_HEX(
  accounts.hash || '|' || CAST(accounts.org_id AS TEXT) || '|' || CAST(accounts.id AS TEXT) || '|' || CAST(accounts.seq + 1 AS TEXT) || '|' || CAST(moves.amount AS TEXT) || '|' || CAST(accounts.available + moves.amount AS TEXT) || '|' || CAST(accounts.debt + moves.debt AS TEXT) || '|' || moves.cause_kind || '|' || moves.cause_id || '|' || :at || '|' || moves.content
)
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.account_id') AS account_id,
    JSON_EXTRACT(record.value, '$.amount') AS amount,
    JSON_EXTRACT(record.value, '$.cause_kind') AS cause_kind,
    JSON_EXTRACT(record.value, '$.cause_id') AS cause_id,
    JSON_EXTRACT(record.value, '$.content') AS content,
    JSON_EXTRACT(record.value, '$.debt') AS debt
  FROM JSON_EACH(:moves_json) AS record
) AS moves
WHERE
  accounts.org_id = moves.org_id
  AND accounts.id = moves.account_id
  AND accounts.available + moves.amount >= 0;

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
  accounts.org_id AS org_id,
  accounts.id AS account_id,
  accounts.seq AS seq,
  moves.amount AS amount,
  accounts.available AS balance_after,
  accounts.debt AS debt_after,
  moves.cause_kind AS cause_kind,
  moves.cause_id AS cause_id,
  moves.content AS content,
  accounts.hash AS hash,
  :now AS at
FROM accounts
JOIN (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.account_id') AS account_id,
    JSON_EXTRACT(record.value, '$.amount') AS amount,
    JSON_EXTRACT(record.value, '$.cause_kind') AS cause_kind,
    JSON_EXTRACT(record.value, '$.cause_id') AS cause_id,
    JSON_EXTRACT(record.value, '$.content') AS content,
    JSON_EXTRACT(record.value, '$.debt') AS debt
  FROM JSON_EACH(:moves_json) AS record
) AS moves
  ON accounts.org_id = moves.org_id AND accounts.id = moves.account_id
WHERE
  NOT (
    EXISTS(
      SELECT
        entries.seq
      FROM entries
      WHERE
        entries.org_id = accounts.org_id
        AND entries.account_id = accounts.id
        AND entries.seq = accounts.seq
    )
  )
RETURNING org_id, account_id;
