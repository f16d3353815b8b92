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
  CAST(%(org_id)s AS INT) AS org_id,
  CAST(%(task)s AS VARCHAR) AS task,
  CAST(%(kind)s AS VARCHAR) AS kind,
  CAST(%(sender)s AS VARCHAR) AS sender,
  CAST(%(owner_version)s AS INT) AS owner_version,
  CAST(%(digest)s AS VARCHAR) AS digest,
  CAST(%(bulk_id)s AS VARCHAR) AS bulk_id,
  CAST(%(account_id)s AS BIGINT) AS account_id,
  CAST(%(charged_by)s AS VARCHAR) AS charged_by,
  0 AS refunded,
  'waiting' AS state,
  0 AS attempts,
  0 AS crashes,
  CAST(%(now)s AS TIMESTAMPTZ) AS created_at
FROM (
  SELECT
    record.job_id AS job_id,
    record.credits AS credits,
    record.content AS content
  FROM JSON_TO_RECORDSET(CAST(CAST(%(new_messages_json)s AS VARCHAR) AS JSON)) AS record(job_id VARCHAR(72), credits BIGINT, content JSON)
  LIMIT CAST(%(new_messages_count)s AS INT)
) AS new_messages;
