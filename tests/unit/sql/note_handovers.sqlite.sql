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
  :now AS at
FROM (
  SELECT
    JSON_EXTRACT(record.value, '$.org_id') AS org_id,
    JSON_EXTRACT(record.value, '$.lease_id') AS lease_id,
    JSON_EXTRACT(record.value, '$.id') AS id,
    JSON_EXTRACT(record.value, '$.carrier') AS carrier,
    JSON_EXTRACT(record.value, '$.job_ids') AS job_ids
  FROM JSON_EACH(:notes_json) AS record
) AS notes
JOIN leases
  ON leases.org_id = notes.org_id AND leases.lease_id = notes.lease_id
WHERE
  leases.ended_at IS NULL
RETURNING org_id, lease_id;
