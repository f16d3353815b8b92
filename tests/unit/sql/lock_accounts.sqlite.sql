SELECT
  accounts.id,
  accounts.available,
  accounts.seq
FROM accounts
WHERE
  accounts.id IN (
    SELECT
      anon_1.value
    FROM JSON_EACH(:ids) AS anon_1
  )
ORDER BY
  accounts.id;
