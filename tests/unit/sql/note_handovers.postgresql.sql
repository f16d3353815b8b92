INSERT INTO handovers (
  org_id,
  lease_id,
  id,
  carrier,
  job_ids,
  at
)
SELECT
  notes.org_id,
  notes.lease_id,
  notes.id,
  notes.carrier,
  notes.job_ids,
  CAST(%(now)s AS TIMESTAMPTZ) AS at
FROM (
  SELECT
    record.org_id AS org_id,
    record.lease_id AS lease_id,
    record.id AS id,
    record.carrier AS carrier,
    record.job_ids AS job_ids
  FROM JSON_TO_RECORDSET(CAST(CAST(%(notes_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, lease_id VARCHAR(32), id VARCHAR(32), carrier VARCHAR(40), job_ids JSON)
  LIMIT CAST(%(notes_count)s AS INT)
) AS notes
JOIN leases
  ON leases.org_id = notes.org_id AND leases.lease_id = notes.lease_id
WHERE
  leases.ended_at IS NULL   FOR SHARE OF leases
RETURNING handovers.org_id, handovers.lease_id;
