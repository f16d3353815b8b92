WITH finished_leases AS (
  DELETE FROM leases
  WHERE
    (leases.org_id, leases.lease_id, JSON_ARRAY_LENGTH(leases.job_ids)) IN (
      SELECT
        settled_leases.org_id,
        settled_leases.lease_id,
        settled_leases.jobs
      FROM (
        SELECT
          record.org_id AS org_id,
          record.lease_id AS lease_id,
          record.jobs AS jobs
        FROM JSON_TO_RECORDSET(CAST(CAST(%(settled_leases_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, lease_id VARCHAR, jobs INT)
        LIMIT CAST(%(settled_leases_count)s AS INT)
      ) AS settled_leases
    )
)
UPDATE charges SET refunded = COALESCE(settlements.refunded, 0), refunded_by = CASE WHEN (
  settlements.refunded > 0
) THEN CAST(%(cause)s AS VARCHAR) END, refunded_at = CASE WHEN (
  settlements.refunded > 0
) THEN CAST(%(now)s AS TIMESTAMPTZ) END, state = settlements.state, reason = settlements.reason, detail = settlements.detail, attempts = (
  charges.attempts - COALESCE(settlements.uncounted, 0)
), lease_until = NULL, due_at = settlements.due_at, crashes = COALESCE(settlements.crashes, 0), handover_started_at = CASE
  WHEN (
    settlements.doubt_since IS NOT NULL
  )
  THEN COALESCE(charges.handover_started_at, settlements.doubt_since)
END, unknown_since = CASE WHEN (
  settlements.state = 'unknown'
) THEN CAST(%(now)s AS TIMESTAMPTZ) END, content = CASE
  WHEN (
    settlements.state IN ('sent', 'failed', 'refused')
  )
  THEN NULL
  ELSE COALESCE(settlements.content, charges.content)
END, recipients_refused = settlements.recipients_refused, carrier_reference = settlements.carrier_reference, carrier = settlements.carrier, final_at = CASE
  WHEN (
    settlements.state IN ('sent', 'failed', 'refused')
  )
  THEN CAST(%(now)s AS TIMESTAMPTZ)
END
FROM (
  SELECT
    record.org_id AS org_id,
    record.job_id AS job_id,
    record.attempts AS attempts,
    record.lease_id AS lease_id,
    record.state AS state,
    record.reason AS reason,
    record.detail AS detail,
    record.refunded AS refunded,
    record.due_at AS due_at,
    record.recipients_refused AS recipients_refused,
    record.carrier AS carrier,
    record.carrier_reference AS carrier_reference,
    record.crashes AS crashes,
    record.content AS content,
    record.uncounted AS uncounted,
    record.doubt_since AS doubt_since
  FROM JSON_TO_RECORDSET(CAST(CAST(%(settlements_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, job_id VARCHAR(72), attempts SMALLINT, lease_id VARCHAR(32), state VARCHAR(8), reason VARCHAR(40), detail TEXT, refunded BIGINT, due_at TIMESTAMPTZ, recipients_refused JSON, carrier VARCHAR(40), carrier_reference VARCHAR(300), crashes SMALLINT, content JSON, uncounted INT, doubt_since TIMESTAMPTZ)
  LIMIT CAST(%(settlements_count)s AS INT)
) AS settlements
WHERE
  charges.org_id = settlements.org_id
  AND charges.job_id = settlements.job_id
  AND charges.attempts = settlements.attempts
  AND charges.lease_id = settlements.lease_id
  AND charges.state = CAST(%(state_before)s AS VARCHAR)
RETURNING charges.org_id, charges.job_id, charges.account_id;
