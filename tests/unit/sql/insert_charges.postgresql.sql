WITH new_lease AS (
  INSERT INTO leases (
    org_id,
    lease_id,
    until,
    job_ids
  )
  SELECT
    new_leases.org_id AS org_id,
    CAST(%(lease_id)s AS VARCHAR) AS lease_id,
    CAST(%(lease_until)s AS TIMESTAMPTZ) AS until,
    new_leases.job_ids AS job_ids
  FROM (
    SELECT
      record.org_id AS org_id,
      record.job_ids AS job_ids
    FROM JSON_TO_RECORDSET(CAST(CAST(%(new_leases_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, job_ids JSON)
    LIMIT CAST(%(new_leases_count)s AS INT)
  ) AS new_leases
  WHERE
    TRUE ON CONFLICT DO NOTHING
)
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
  CAST(%(task)s AS VARCHAR) AS task,
  CAST(%(kind)s AS VARCHAR) AS kind,
  CASE
    WHEN (
      new_charges.account_id IS NOT NULL
    )
    THEN CAST(%(cause)s AS VARCHAR)
  END AS charged_by,
  0 AS refunded,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN 'refused'
    ELSE CAST(%(state)s AS VARCHAR)
  END AS state,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN 0
    ELSE CAST(%(attempts)s AS SMALLINT)
  END AS attempts,
  0 AS crashes,
  CAST(%(lease_id)s AS VARCHAR) AS lease_id,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN NULL
    ELSE CAST(%(lease_until)s AS TIMESTAMPTZ)
  END AS lease_until,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN NULL
    ELSE CAST(%(due_at)s AS TIMESTAMPTZ)
  END AS due_at,
  CAST(%(now)s AS TIMESTAMPTZ) AS created_at,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN CAST(%(now)s AS TIMESTAMPTZ)
  END AS final_at
FROM (
  SELECT
    record.org_id AS org_id,
    record.job_id AS job_id,
    record.sender AS sender,
    record.owner_version AS owner_version,
    record.digest AS digest,
    record.account_id AS account_id,
    record.credits AS credits,
    record.content AS content,
    record.reason AS reason,
    record.detail AS detail
  FROM JSON_TO_RECORDSET(CAST(CAST(%(new_charges_json)s AS VARCHAR) AS JSON)) AS record(org_id INT, job_id VARCHAR(72), sender VARCHAR(64), owner_version INT, digest VARCHAR(72), account_id BIGINT, credits BIGINT, content JSON, reason VARCHAR(40), detail TEXT)
  LIMIT CAST(%(new_charges_count)s AS INT)
) AS new_charges
WHERE
  TRUE
ORDER BY
  new_charges.org_id,
  new_charges.job_id ON CONFLICT DO NOTHING
RETURNING charges.org_id, charges.job_id;
