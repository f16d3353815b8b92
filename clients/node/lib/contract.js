// Made by clients/node/make_contract.py from the server's own messages: change them, and run it again.

/** What an id is. */
export const ID = /^[A-Za-z0-9._:-]{1,64}$/;

/** The queue of each task. */
export const QUEUES = {
  "email.send": "email",
  "sms.send": "sms",
  "email.send_many": "bulk",
  "sms.send_many": "bulk",
  "credits.purchase": "billing",
  "credits.reverse": "billing",
  "credits.adjust": "billing",
  "credits.set_owner": "billing",
  "users.save": "billing",
  "roles.save": "billing",
  "plans.save": "billing",
  "messages.cancel": "billing",
  "users.erase": "billing",
  "views.overview": "views",
  "views.usage": "views",
  "views.orders": "views",
  "views.statement": "views",
  "views.billing": "views",
  "views.users": "views",
  "views.changes": "views",
  "views.message": "views",
  "views.explain": "views"
};

/** The fields that a task's message must have. */
export const NEEDED = {
  "email.send": [
    "job_id",
    "sender",
    "subject",
    "to"
  ],
  "sms.send": [
    "job_id",
    "sender",
    "text",
    "to"
  ],
  "email.send_many": [
    "job_id",
    "sender",
    "subject",
    "recipients"
  ],
  "sms.send_many": [
    "job_id",
    "sender",
    "text",
    "recipients"
  ],
  "credits.purchase": [
    "order_id",
    "buyer"
  ],
  "credits.reverse": [
    "reversal_id",
    "order_id",
    "kind",
    "reason"
  ],
  "credits.adjust": [
    "adjustment_id",
    "actor",
    "owner",
    "credits",
    "reason"
  ],
  "credits.set_owner": [
    "change_id",
    "actor",
    "user",
    "owner"
  ],
  "users.save": [
    "user_id",
    "organization",
    "name",
    "email",
    "role"
  ],
  "roles.save": [
    "organization",
    "role",
    "rights"
  ],
  "plans.save": [
    "plan",
    "name",
    "credits",
    "price",
    "currency"
  ],
  "messages.cancel": [
    "cancel_id",
    "actor"
  ],
  "users.erase": [
    "erasure_id",
    "actor",
    "user"
  ],
  "views.overview": [
    "viewer"
  ],
  "views.usage": [
    "viewer"
  ],
  "views.orders": [
    "viewer"
  ],
  "views.statement": [
    "viewer"
  ],
  "views.billing": [
    "viewer"
  ],
  "views.users": [
    "viewer"
  ],
  "views.changes": [
    "viewer"
  ],
  "views.message": [
    "viewer",
    "job_id"
  ],
  "views.explain": [
    "viewer",
    "job_id"
  ]
};

/** The other fields that it may have. */
export const OPTIONAL = {
  "email.send": [
    "cc",
    "bcc",
    "text",
    "html",
    "reply_to",
    "headers"
  ],
  "sms.send": [
    "from"
  ],
  "email.send_many": [
    "cc",
    "bcc",
    "text",
    "html",
    "reply_to",
    "headers"
  ],
  "sms.send_many": [
    "from"
  ],
  "credits.purchase": [
    "plan",
    "credits",
    "amount",
    "currency",
    "credit_to",
    "billing"
  ],
  "credits.reverse": [
    "credits",
    "buyer"
  ],
  "credits.adjust": [],
  "credits.set_owner": [],
  "users.save": [
    "version",
    "actor",
    "billing"
  ],
  "roles.save": [
    "version",
    "actor"
  ],
  "plans.save": [
    "version",
    "actor"
  ],
  "messages.cancel": [
    "job_id",
    "sender"
  ],
  "users.erase": [],
  "views.overview": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ],
  "views.usage": [
    "of",
    "since",
    "until",
    "page",
    "next",
    "by"
  ],
  "views.orders": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ],
  "views.statement": [
    "of",
    "since",
    "until",
    "page",
    "next",
    "entry"
  ],
  "views.billing": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ],
  "views.users": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ],
  "views.changes": [
    "of",
    "since",
    "until",
    "page",
    "next",
    "subject"
  ],
  "views.message": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ],
  "views.explain": [
    "of",
    "since",
    "until",
    "page",
    "next"
  ]
};

/** The tasks that send. */
export const SEND_TASKS = [
  "email.send",
  "sms.send",
  "email.send_many",
  "sms.send_many"
];

/** Ids of jobs, in the order in which they are looked for. */
export const ID_FIELDS = [
  "cancel_id",
  "job_id",
  "reversal_id",
  "adjustment_id",
  "order_id",
  "change_id",
  "erasure_id",
  "user_id"
];

/** Whose job it is, likewise. */
export const USER_FIELDS = [
  "sender",
  "buyer",
  "actor",
  "viewer"
];
