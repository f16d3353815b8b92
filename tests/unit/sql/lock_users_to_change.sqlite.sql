SELECT
  users.id,
  users.organization,
  users.name,
  users.email,
  users.role,
  users.credit_owner_id
FROM users
WHERE
  users.id IN (
    SELECT
      anon_1.value
    FROM JSON_EACH(:ids) AS anon_1
  )
ORDER BY
  users.id;
