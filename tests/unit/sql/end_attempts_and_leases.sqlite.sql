DELETE FROM leases
WHERE
  (leases.org_id, leases.lease_id, JSON_ARRAY_LENGTH(leases.job_ids)) IN (
    SELECT
      settled_leases.org_id,
      settled_leases.lease_id,
      settled_leases.jobs
    FROM (
      SELECT
        JSON_EXTRACT(record.value, '$.org_id') AS org_id,
        JSON_EXTRACT(record.value, '$.lease_id') AS lease_id,
        JSON_EXTRACT(record.value, '$.jobs') AS jobs
      FROM JSON_EACH(:settled_leases_json) AS record
    ) AS settled_leases
  );

UPDATE charges SET refunded = COALESCE(settlements.refunded, 0), refunded_by = CASE WHEN (
  settlements.refunded > 0
) THEN :cause END, refunded_at = CASE WHEN (
  settlements.refunded > 0
) THEN :now END, state = settlements.state, reason = settlements.reason, detail = settlements.detail, attempts = (
  charges.attempts - COALESCE(settlements.uncounted, 0)
), lease_until = NULL, due_at = settlements.due_at, crashes = COALESCE(settlements.crashes, 0), handover_started_at = CASE
  WHEN (
    NOT settlements.doubt_since IS NULL
  )
  THEN COALESCE(charges.handover_started_at, settlements.doubt_since)
END, unknown_since = CASE WHEN (
  settlements.state = 'unknown'
) THEN :now END, content = CASE
  WHEN (
    settlements.state IN ('sent', 'failed', 'refused')
  )
  THEN NULL
  ELSE COALESCE(settlements.content, charges.content)
END, recipients_refused = settlements.recipients_refused, carrier_reference = settlements.carrier_reference, carrier = settlements.carrier, final_at = CASE WHEN (
  settlements.state IN ('sent', 'failed', 'refused')
) THEN :now END
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.job_id') AS job_id,
    JSON_EXTRACT(record.value, '$.attempts') AS attempts,
    JSON_EXTRACT(record.value, '$.lease_id') AS lease_id,
    JSON_EXTRACT(record.value, '$.state') AS state,
    JSON_EXTRACT(record.value, '$.reason') AS reason,
    JSON_EXTRACT(record.value, '$.detail') AS detail,
    JSON_EXTRACT(record.value, '$.refunded') AS refunded,
    JSON_EXTRACT(record.value, '$.due_at') AS due_at,
    JSON_EXTRACT(record.value, '$.recipients_refused') AS recipients_refused,
    JSON_EXTRACT(record.value, '$.carrier') AS carrier,
    JSON_EXTRACT(record.value, '$.carrier_reference') AS carrier_reference,
    JSON_EXTRACT(record.value, '$.crashes') AS crashes,
    JSON_EXTRACT(record.value, '$.content') AS content,
    JSON_EXTRACT(record.value, '$.uncounted') AS uncounted,
    JSON_EXTRACT(record.value, '$.doubt_since') AS doubt_since
  FROM JSON_EACH(:settlements_json) AS record
) AS settlements
WHERE
  charges.org_id = settlements.org_id
  AND charges.job_id = settlements.job_id
  AND charges.attempts = settlements.attempts
  AND charges.lease_id = settlements.lease_id
  AND charges.state = :state_before
RETURNING org_id, job_id, account_id;
