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
  CAST(%(messages)s AS SMALLINT) AS messages,
  CAST(%(now)s AS TIMESTAMPTZ) AS created_at,
  CASE
    WHEN (
      new_charges.reason IS NOT NULL
    )
    THEN CAST(%(now)s AS TIMESTAMPTZ)
  END AS final_at
FROM (
  SELECT
    record.job_id AS job_id,
    record.task AS task,
    record.kind AS kind,
    record.sender AS sender,
    record.digest AS digest,
    record.credits AS credits,
    record.content AS content,
    record.reason AS reason,
    record.detail AS detail,
    record.payer AS payer
  FROM JSON_TO_RECORDSET(CAST(CAST(%(new_charges_json)s AS VARCHAR) AS JSON)) AS record(job_id VARCHAR(72), task VARCHAR(32), kind VARCHAR(5), sender VARCHAR(64), digest VARCHAR(64), credits BIGINT, content JSON, reason VARCHAR(40), detail TEXT, payer VARCHAR(64))
  LIMIT CAST(%(new_charges_count)s AS INT)
) AS new_charges
LEFT OUTER JOIN accounts
  ON accounts.owner_id = new_charges.payer AND accounts.kind = new_charges.kind
WHERE
  TRUE
ORDER BY
  new_charges.job_id ON CONFLICT DO NOTHING
RETURNING charges.job_id, charges.account_id;
