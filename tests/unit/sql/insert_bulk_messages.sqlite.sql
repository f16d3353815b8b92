INSERT INTO charges (
  job_id,
  credits,
  content,
  org_id,
  task,
  kind,
  sender,
  owner_version,
  digest,
  bulk_id,
  account_id,
  charged_by,
  refunded,
  state,
  attempts,
  crashes,
  created_at
)
SELECT
  new_messages.job_id AS job_id,
  new_messages.credits AS credits,
  new_messages.content AS content,
  :org_id AS org_id,
  :task AS task,
  :kind AS kind,
  :sender AS sender,
  :owner_version AS owner_version,
  :digest AS digest,
  :bulk_id AS bulk_id,
  :account_id AS account_id,
  :charged_by AS charged_by,
  0 AS refunded,
  'waiting' AS state,
  0 AS attempts,
  0 AS crashes,
  :now AS created_at
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.job_id') AS job_id,
    JSON_EXTRACT(record.value, '$.credits') AS credits,
    JSON_EXTRACT(record.value, '$.content') AS content
  FROM JSON_EACH(:new_messages_json) AS record
) AS new_messages;
