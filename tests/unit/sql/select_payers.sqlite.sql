SELECT
  users.id,
  users.org_id,
  users.name,
  users.email,
  users.credit_owner_id,
  users.owner_version,
  NOT users.erased_at IS NULL AS is_erased,
  accounts.id AS account_id
FROM users
JOIN accounts
  ON accounts.org_id = users.org_id
  AND accounts.owner_id = users.credit_owner_id
  AND accounts.kind = :kind
WHERE
  users.id IN (
    SELECT
      anon_1.value
    FROM JSON_EACH(:senders) AS anon_1
  );
