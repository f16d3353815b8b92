UPDATE charges SET state = :state, attempts = (
  charges.attempts - :attempts_1
), lease_until = :lease_until, due_at = :now
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.job_id') AS job_id,
    JSON_EXTRACT(record.value, '$.attempts') AS attempts,
    JSON_EXTRACT(record.value, '$.lease_id') AS lease_id
  FROM JSON_EACH(:attempts_json) AS record
) AS attempts
WHERE
  charges.org_id = attempts.org_id
  AND charges.job_id = attempts.job_id
  AND charges.attempts = attempts.attempts
  AND charges.lease_id = attempts.lease_id
  AND charges.state = 'sending';
