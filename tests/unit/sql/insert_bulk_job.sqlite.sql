INSERT INTO charges (
  job_id,
  task,
  kind,
  sender,
  digest,
  credits,
  content,
  reason,
  detail,
  account_id,
  refunded,
  state,
  attempts,
  crashes,
  lease_id,
  lease_until,
  due_at,
  messages,
  created_at,
  final_at
)
SELECT
  new_charges.job_id AS job_id,
  new_charges.task AS task,
  new_charges.kind AS kind,
  new_charges.sender AS sender,
  new_charges.digest AS digest,
  new_charges.credits AS credits,
  new_charges.content AS content,
  new_charges.reason AS reason,
  new_charges.detail AS detail,
  accounts.id AS account_id,
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
  :messages AS messages,
  :now AS created_at,
  CASE WHEN (
    NOT new_charges.reason IS NULL
  ) THEN :now END AS final_at
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.job_id') AS job_id,
    JSON_EXTRACT(record.value, '$.task') AS task,
    JSON_EXTRACT(record.value, '$.kind') AS kind,
    JSON_EXTRACT(record.value, '$.sender') AS sender,
    JSON_EXTRACT(record.value, '$.digest') AS digest,
    JSON_EXTRACT(record.value, '$.credits') AS credits,
    JSON_EXTRACT(record.value, '$.content') AS content,
    JSON_EXTRACT(record.value, '$.reason') AS reason,
    JSON_EXTRACT(record.value, '$.detail') AS detail,
    JSON_EXTRACT(record.value, '$.payer') AS payer
  FROM JSON_EACH(:new_charges_json) AS record
) AS new_charges
LEFT OUTER JOIN accounts
  ON accounts.owner_id = new_charges.payer AND accounts.kind = new_charges.kind
WHERE
  1 = 1
ORDER BY
  new_charges.job_id ON CONFLICT DO NOTHING
RETURNING job_id, account_id;
