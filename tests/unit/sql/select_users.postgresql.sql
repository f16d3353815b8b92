SELECT
  users.id,
  users.org_id,
  users.name,
  users.email,
  users.role,
  users.credit_owner_id,
  users.owner_version,
  users.erased_at IS NOT NULL AS is_erased
FROM users
WHERE
  users.id = ANY(
    CAST(%(ids)s AS VARCHAR(64)[])
  );
