SELECT
  users.id,
  users.org_id,
  users.name,
  users.email,
  users.credit_owner_id,
  users.owner_version,
  users.erased_at IS NOT NULL AS is_erased,
  accounts.id AS account_id
FROM users
JOIN accounts
  ON accounts.org_id = users.org_id
  AND accounts.owner_id = users.credit_owner_id
  AND accounts.kind = CAST(%(kind)s AS VARCHAR)
WHERE
  users.id = ANY(
    CAST(%(senders)s AS VARCHAR(64)[])
  );
