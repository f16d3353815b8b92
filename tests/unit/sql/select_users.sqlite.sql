SELECT
  users.id,
  users.org_id,
  users.name,
  users.email,
  users.role,
  users.credit_owner_id,
  users.owner_version,
  NOT users.erased_at IS NULL AS is_erased
FROM users
WHERE
  users.id IN (
    SELECT
      anon_1.value
    FROM JSON_EACH(:ids) AS anon_1
  );
