INSERT INTO charges (
  org_id,
  job_id,
  sender,
  owner_version,
  digest,
  account_id,
  credits,
  content,
  reason,
  detail,
  task,
  kind,
  charged_by,
  refunded,
  state,
  attempts,
  crashes,
  lease_id,
  lease_until,
  due_at,
  created_at,
  final_at
)
SELECT
  new_charges.org_id AS org_id,
  new_charges.job_id AS job_id,
  new_charges.sender AS sender,
  new_charges.owner_version AS owner_version,
  new_charges.digest AS digest,
  new_charges.account_id AS account_id,
  new_charges.credits AS credits,
  new_charges.content AS content,
  new_charges.reason AS reason,
  new_charges.detail AS detail,
  :task AS task,
  :kind AS kind,
  CASE WHEN (
    NOT new_charges.account_id IS NULL
  ) THEN :cause END AS charged_by,
  0 AS refunded,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN 'refused' ELSE :state END AS state,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN 0 ELSE :attempts END AS attempts,
  0 AS crashes,
  :lease_id AS lease_id,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN NULL ELSE :lease_until END AS lease_until,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN NULL ELSE :due_at END AS due_at,
  :now AS created_at,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN :now END AS final_at
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.job_id') AS job_id,
    JSON_EXTRACT(record.value, '$.sender') AS sender,
    JSON_EXTRACT(record.value, '$.owner_version') AS owner_version,
    JSON_EXTRACT(record.value, '$.digest') AS digest,
    JSON_EXTRACT(record.value, '$.account_id') AS account_id,
    JSON_EXTRACT(record.value, '$.credits') AS credits,
    JSON_EXTRACT(record.value, '$.content') AS content,
    JSON_EXTRACT(record.value, '$.reason') AS reason,
    JSON_EXTRACT(record.value, '$.detail') AS detail
  FROM JSON_EACH(:new_charges_json) AS record
) AS new_charges
WHERE
  1 = 1
ORDER BY
  new_charges.org_id,
  new_charges.job_id ON CONFLICT DO NOTHING
RETURNING org_id, job_id;
