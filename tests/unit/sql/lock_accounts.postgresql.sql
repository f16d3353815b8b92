SELECT
  accounts.id,
  accounts.available,
  accounts.seq
FROM accounts
WHERE
  accounts.id = ANY(
    CAST(%(ids)s AS BIGINT[])
  )
ORDER BY
  accounts.id   FOR NO KEY UPDATE;
