UPDATE charges SET state = CAST(%(state)s AS VARCHAR), attempts = (
  charges.attempts - CAST(%(attempts_1)s AS SMALLINT)
), lease_until = CAST(%(lease_until)s AS TIMESTAMPTZ), due_at = CAST(%(now)s AS TIMESTAMPTZ)
FROM (
  SELECT
    record.org_id AS org_id,
    record.job_id AS job_id,
    record.attempts AS attempts,
    record.lease_id AS lease_id
  FROM JSON_TO_RECORDSET(CAST(CAST(%(attempts_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, job_id VARCHAR(72), attempts SMALLINT, lease_id VARCHAR(32))
  LIMIT CAST(%(attempts_count)s AS INT)
) AS attempts
WHERE
  charges.org_id = attempts.org_id
  AND charges.job_id = attempts.job_id
  AND charges.attempts = attempts.attempts
  AND charges.lease_id = attempts.lease_id
  AND charges.state = 'sending';
