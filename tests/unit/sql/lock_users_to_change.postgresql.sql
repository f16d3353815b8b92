SELECT
  users.id,
  users.organization,
  users.name,
  users.email,
  users.role,
  users.credit_owner_id
FROM users
WHERE
  users.id = ANY(
    CAST(%(ids)s AS VARCHAR(64)[])
  )
ORDER BY
  users.id   FOR UPDATE;
