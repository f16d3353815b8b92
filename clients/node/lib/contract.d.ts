// Made by clients/node/make_contract.py from the server's own messages: change them, and run it again.

/**
 * An account, and a page of its entries, the newest first.
 */
export interface AccountPage {
  owner: string;
  kind: "email" | "sms";
  org_id: number;
  account_id: number;
  balance: number;
  debt: number;
  hash_before: string;
  entries: Array<EntryRow>;
}

/**
 * `credits.adjust`: a correction by hand of what `owner` holds.
 */
export interface Adjustment {
  adjustment_id: string;
  actor: string;
  owner: string;
  credits: SignedCredits;
  reason: string;
}

/**
 * `credits.adjust`.
 */
export interface AdjustmentAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  adjustment_id: string | null;
  actor: string | null;
  owner: string | null;
  credits: CreditCounts | null;
}

/**
 * An adjustment.
 */
export interface AdjustmentRow {
  adjustment_id: string;
  actor: string;
  owner: string;
  credits: CreditCounts;
  reason: string;
  at: string;
}

/**
 * `views.billing`.
 */
export interface BillingAnswer {
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  billing: Record<string, string> | null;
}

/**
 * A plan that was bought, in `views.overview`.
 */
export interface BoughtPlan {
  plan: string;
  name: string;
  orders: number;
  last_at: string;
}

/**
 * `messages.cancel`.
 */
export interface CancelAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  cancel_id: string | null;
  actor: string | null;
  cancelled: number | null;
  credits: number;
  too_late: number | null;
}

/**
 * `messages.cancel`: what waits of one job, or of everything that `sender` has sent, is not sent any more.
 *
 * It has either `job_id` or `sender`.
 */
export interface CancelMessages {
  cancel_id: string;
  actor: string;
  job_id?: string | null;
  sender?: string | null;
}

/**
 * A change, in `views.changes`; `old` is null for what is new.
 */
export interface ChangeRow {
  kind: string;
  subject: string;
  actor: string | null;
  old: Record<string, unknown> | null;
  new: Record<string, unknown> | null;
  at: string;
}

/**
 * `views.changes`.
 */
export interface ChangesAnswer {
  page: number | null;
  more: boolean | null;
  next: string | null;
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  rows: Array<ChangeRow> | null;
}

/**
 * Credits of each kind.
 */
export interface CreditCounts {
  email: number;
  sms: number;
}

/**
 * Whole credits of each kind, at least one of them.
 */
export interface Credits {
  email?: number;
  sms?: number;
}

/**
 * One recipient of a bulk email, and the values for the placeholders.
 */
export interface EmailRecipient {
  to: string;
  values?: Record<string, string>;
}

/**
 * `views.statement` with `entry`: what is behind it.
 */
export interface EntryAnswer {
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  owner: string | null;
  of: string | null;
  sharing: boolean | null;
  reminder: string | null;
  entry: EntryOfAccount | null;
  messages: Array<EntryMessage> | null;
  order: OrderRow | null;
  reversal: ReversalOfOrder | null;
  adjustment: AdjustmentRow | null;
}

/**
 * A message that an entry paid for, or gave back.
 */
export interface EntryMessage {
  job_id: string;
  user: string;
  credits: number;
  status: "sending" | "retrying" | "sent" | "failed" | "refused" | "unknown";
  at: string;
}

/**
 * An entry, and its account.
 */
export interface EntryOfAccount {
  owner: string;
  kind: "email" | "sms";
  org_id: number;
  account_id: number;
  seq: number;
  amount: number;
  balance_after: number;
  debt_after: number;
  cause_kind: string;
  cause_id: string;
  at: string;
  content: string;
  hash: string;
}

/**
 * An entry of an account, with all that its hash is made of beside the account.
 */
export interface EntryRow {
  seq: number;
  amount: number;
  balance_after: number;
  debt_after: number;
  cause_kind: string;
  cause_id: string;
  at: string;
  content: string;
  hash: string;
}

/**
 * `users.erase`: what names `user`, or those they wrote to, except what invoices keep.
 */
export interface EraseUser {
  erasure_id: string;
  actor: string;
  user: string;
}

/**
 * `users.erase`.
 */
export interface ErasureAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  erasure_id: string | null;
  user: string | null;
}

/**
 * An order with its reversals; `reversed` has the credits that they took back in all.
 */
export interface OrderRow {
  order_id: string;
  buyer: string;
  owner: string;
  plan: string | null;
  credits: CreditCounts;
  amount: number;
  currency: string;
  at: string;
  reversed: CreditCounts;
  reversals: Array<ReversalRow>;
}

/**
 * `views.orders`.
 */
export interface OrdersAnswer {
  page: number | null;
  more: boolean | null;
  next: string | null;
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  owner: string | null;
  of: string | null;
  sharing: boolean | null;
  reminder: string | null;
  rows: Array<OrderRow> | null;
}

/**
 * `views.overview`.
 */
export interface OverviewAnswer {
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  owner: string | null;
  of: string | null;
  sharing: boolean | null;
  reminder: string | null;
  remaining: CreditCounts | null;
  debt: CreditCounts | null;
  plans: Array<BoughtPlan> | null;
}

/**
 * `credits.set_owner`.
 */
export interface OwnerAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  change_id: string | null;
  user: string | null;
  owner: string | null;
}

/**
 * `plans.save`.
 */
export interface PlanAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  plan: string | null;
}

/**
 * `credits.purchase`: credits that `buyer` bought, as a plan or as a number of credits.
 *
 * It has either `plan`, or all of `credits`, `amount` and `currency`.
 */
export interface Purchase {
  order_id: string;
  buyer: string;
  plan?: string | null;
  credits?: Credits | null;
  amount?: number | null;
  currency?: "AED" | "AFN" | "ALL" | "AMD" | "AOA" | "ARS" | "AUD" | "AWG" | "AZN" | "BAM" | "BBD" | "BDT" | "BHD" | "BIF" | "BMD" | "BND" | "BOB" | "BRL" | "BSD" | "BTN" | "BWP" | "BYN" | "BZD" | "CAD" | "CDF" | "CHF" | "CLP" | "CNY" | "COP" | "CRC" | "CUP" | "CVE" | "CZK" | "DJF" | "DKK" | "DOP" | "DZD" | "EGP" | "ERN" | "ETB" | "EUR" | "FJD" | "FKP" | "GBP" | "GEL" | "GHS" | "GIP" | "GMD" | "GNF" | "GTQ" | "GYD" | "HKD" | "HNL" | "HTG" | "HUF" | "IDR" | "ILS" | "INR" | "IQD" | "IRR" | "ISK" | "JMD" | "JOD" | "JPY" | "KES" | "KGS" | "KHR" | "KMF" | "KPW" | "KRW" | "KWD" | "KYD" | "KZT" | "LAK" | "LBP" | "LKR" | "LRD" | "LSL" | "LYD" | "MAD" | "MDL" | "MGA" | "MKD" | "MMK" | "MNT" | "MOP" | "MRU" | "MUR" | "MVR" | "MWK" | "MXN" | "MYR" | "MZN" | "NAD" | "NGN" | "NIO" | "NOK" | "NPR" | "NZD" | "OMR" | "PAB" | "PEN" | "PGK" | "PHP" | "PKR" | "PLN" | "PYG" | "QAR" | "RON" | "RSD" | "RUB" | "RWF" | "SAR" | "SBD" | "SCR" | "SDG" | "SEK" | "SGD" | "SHP" | "SLE" | "SOS" | "SRD" | "SSP" | "STN" | "SVC" | "SYP" | "SZL" | "THB" | "TJS" | "TMT" | "TND" | "TOP" | "TRY" | "TTD" | "TWD" | "TZS" | "UAH" | "UGX" | "USD" | "UYU" | "UZS" | "VED" | "VES" | "VND" | "VUV" | "WST" | "XAF" | "XCD" | "XCG" | "XOF" | "XPF" | "YER" | "ZAR" | "ZMW" | "ZWG" | null;
  credit_to?: "owner" | "self";
  billing?: Record<string, string> | null;
}

/**
 * `credits.purchase`.
 */
export interface PurchaseAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  order_id: string | null;
  buyer: string | null;
  paid_by: string | null;
  owner: string | null;
  credits: CreditCounts | null;
  amount: number | null;
  currency: string | null;
}

/**
 * `credits.reverse`: a purchase was paid back, by a refund or a chargeback, so its credits are taken back.
 *
 * Without `credits` it is everything that is left of the order. `buyer` is needed only where several organizations
 * have an order of that id.
 */
export interface Reversal {
  reversal_id: string;
  order_id: string;
  kind: "refund" | "chargeback";
  credits?: Credits | null;
  reason: string;
  buyer?: string | null;
}

/**
 * `credits.reverse`.
 */
export interface ReversalAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  reversal_id: string | null;
  order_id: string | null;
  kind: string | null;
  buyer: string | null;
  owner: string | null;
  credits: CreditCounts | null;
  debt: CreditCounts | null;
}

/**
 * A reversal, and its order.
 */
export interface ReversalOfOrder {
  reversal_id: string;
  kind: "refund" | "chargeback";
  credits: CreditCounts;
  debt: CreditCounts;
  reason: string;
  at: string;
  order_id: string;
}

/**
 * A reversal of an order.
 */
export interface ReversalRow {
  reversal_id: string;
  kind: "refund" | "chargeback";
  credits: CreditCounts;
  debt: CreditCounts;
  reason: string;
  at: string;
}

/**
 * `roles.save`.
 */
export interface RoleAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  organization: string | null;
  role: string | null;
}

/**
 * `plans.save`: what can be bought under a name. Orders keep the terms they were made under.
 */
export interface SavePlan {
  version?: number | null;
  actor?: string | null;
  plan: string;
  name: string;
  credits: Credits;
  price: number;
  currency: "AED" | "AFN" | "ALL" | "AMD" | "AOA" | "ARS" | "AUD" | "AWG" | "AZN" | "BAM" | "BBD" | "BDT" | "BHD" | "BIF" | "BMD" | "BND" | "BOB" | "BRL" | "BSD" | "BTN" | "BWP" | "BYN" | "BZD" | "CAD" | "CDF" | "CHF" | "CLP" | "CNY" | "COP" | "CRC" | "CUP" | "CVE" | "CZK" | "DJF" | "DKK" | "DOP" | "DZD" | "EGP" | "ERN" | "ETB" | "EUR" | "FJD" | "FKP" | "GBP" | "GEL" | "GHS" | "GIP" | "GMD" | "GNF" | "GTQ" | "GYD" | "HKD" | "HNL" | "HTG" | "HUF" | "IDR" | "ILS" | "INR" | "IQD" | "IRR" | "ISK" | "JMD" | "JOD" | "JPY" | "KES" | "KGS" | "KHR" | "KMF" | "KPW" | "KRW" | "KWD" | "KYD" | "KZT" | "LAK" | "LBP" | "LKR" | "LRD" | "LSL" | "LYD" | "MAD" | "MDL" | "MGA" | "MKD" | "MMK" | "MNT" | "MOP" | "MRU" | "MUR" | "MVR" | "MWK" | "MXN" | "MYR" | "MZN" | "NAD" | "NGN" | "NIO" | "NOK" | "NPR" | "NZD" | "OMR" | "PAB" | "PEN" | "PGK" | "PHP" | "PKR" | "PLN" | "PYG" | "QAR" | "RON" | "RSD" | "RUB" | "RWF" | "SAR" | "SBD" | "SCR" | "SDG" | "SEK" | "SGD" | "SHP" | "SLE" | "SOS" | "SRD" | "SSP" | "STN" | "SVC" | "SYP" | "SZL" | "THB" | "TJS" | "TMT" | "TND" | "TOP" | "TRY" | "TTD" | "TWD" | "TZS" | "UAH" | "UGX" | "USD" | "UYU" | "UZS" | "VED" | "VES" | "VND" | "VUV" | "WST" | "XAF" | "XCD" | "XCG" | "XOF" | "XPF" | "YER" | "ZAR" | "ZMW" | "ZWG";
}

/**
 * `roles.save`: a role of an organization and the rights it holds.
 */
export interface SaveRole {
  version?: number | null;
  actor?: string | null;
  organization: string;
  role: string;
  rights: Array<"view_user_list" | "edit_user" | "adjust_credits">;
}

/**
 * `users.save`: a new user, or a new name, address, role or billing information of one.
 */
export interface SaveUser {
  version?: number | null;
  actor?: string | null;
  user_id: string;
  organization: string;
  name: string;
  email: string;
  role: string;
  billing?: Record<string, string> | null;
}

/**
 * A send job: what `views.message` returns.
 */
export interface SendAnswer {
  job_id: string | null;
  task: string | null;
  kind: string | null;
  status: "sending" | "retrying" | "sent" | "failed" | "refused" | "unknown";
  reason: Reason | null;
  detail: string | null;
  sender: string | null;
  paid_by: string | null;
  credits: number;
  cost: number | null;
  attempts: number;
  recipients_refused: Record<string, string>;
  carrier_reference: string | null;
  created_at: string | null;
  next_attempt_at: string | null;
  final_at: string | null;
  messages?: Record<string, number>;
}

/**
 * `email.send`: one email to one or several recipients, which is one message and one charge.
 *
 * `to`, `cc` and `bcc` together name at most 100 recipients. At least one of `text` and `html` is needed.
 */
export interface SendEmail {
  job_id: string;
  sender: string;
  cc?: string | Array<string> | null;
  bcc?: string | Array<string> | null;
  subject: string;
  text?: string | null;
  html?: string | null;
  reply_to?: string | Array<string> | null;
  headers?: Record<string, string> | null;
  to: string | Array<string>;
}

/**
 * `email.send_many`: one email for each recipient, filled in with the recipient's values.
 *
 * `{{name}}` in `subject`, `text` and `html` is replaced by the recipient's value of that name, which must be there.
 * Other `{{` are refused, in `headers` too. Filled in, each email must be valid as an `email.send`, and all of them
 * together have at most 25 million characters.
 */
export interface SendManyEmails {
  job_id: string;
  sender: string;
  cc?: string | Array<string> | null;
  bcc?: string | Array<string> | null;
  subject: string;
  text?: string | null;
  html?: string | null;
  reply_to?: string | Array<string> | null;
  headers?: Record<string, string> | null;
  recipients: Array<EmailRecipient>;
}

/**
 * `sms.send_many`: one text message for each recipient, filled in with the recipient's values.
 *
 * `{{name}}` in `text` is replaced by the recipient's value of that name, which must be there. Other `{{` are refused.
 * Filled in, each text must be valid as that of an `sms.send`.
 */
export interface SendManySms {
  job_id: string;
  sender: string;
  text: string;
  from?: string | null;
  recipients: Array<SmsRecipient>;
}

/**
 * `sms.send`: one text message.
 */
export interface SendSms {
  job_id: string;
  sender: string;
  text: string;
  from?: string | null;
  to: string;
}

/**
 * `credits.set_owner`: from now on `user` spends the credits of `owner`; with `owner` = `user`, their own again.
 */
export interface SetOwner {
  change_id: string;
  actor: string;
  user: string;
  owner: string;
}

/**
 * Whole credits of each kind, to be given (positive) or taken (negative), at least one of them.
 */
export interface SignedCredits {
  email?: number;
  sms?: number;
}

/**
 * One recipient of a bulk text message, and the values for the placeholders.
 */
export interface SmsRecipient {
  to: string;
  values?: Record<string, string>;
}

/**
 * `views.statement`: a page of each account.
 */
export interface StatementAnswer {
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  owner: string | null;
  of: string | null;
  sharing: boolean | null;
  reminder: string | null;
  accounts: Array<AccountPage> | null;
  more: boolean | null;
  next: string | null;
}

/**
 * `views.explain`: the answer to a send job, and what led to it.
 */
export interface StoryAnswer {
  job_id: string | null;
  task: string | null;
  kind: string | null;
  status: "sending" | "retrying" | "sent" | "failed" | "refused" | "unknown";
  reason: Reason | null;
  detail: string | null;
  sender: string | null;
  paid_by: string | null;
  credits: number;
  cost: number | null;
  attempts: number;
  recipients_refused: Record<string, string>;
  carrier_reference: string | null;
  created_at: string | null;
  next_attempt_at: string | null;
  final_at: string | null;
  messages?: Record<string, number>;
  story: Array<StoryRow>;
}

/**
 * What happened to a job, or without a time how it stands now. Each `kind` has fields of its own besides.
 */
export interface StoryRow {
  at: string | null;
  kind: string;
  text: string;
  [other: string]: unknown;
}

/**
 * `views.usage`.
 */
export interface UsageAnswer {
  page: number | null;
  more: boolean | null;
  next: string | null;
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  owner: string | null;
  of: string | null;
  sharing: boolean | null;
  reminder: string | null;
  total: CreditCounts | null;
  by: string | null;
  rows: Array<UsageDay | UsageMessage> | null;
}

/**
 * What the messages of a user on a day cost, in `views.usage`.
 */
export interface UsageDay {
  user: string;
  day: string;
  kind: "email" | "sms";
  credits: number;
  messages: number;
}

/**
 * What a message costs, in `views.usage` by message.
 */
export interface UsageMessage {
  job_id: string;
  user: string;
  kind: "email" | "sms";
  credits: number;
  status: "sending" | "retrying" | "sent" | "failed" | "refused" | "unknown";
  paid_by: string;
  at: string;
}

/**
 * `users.save`.
 */
export interface UserAnswer {
  status: "done" | "refused";
  reason: Reason | null;
  detail: string | null;
  user_id: string | null;
}

/**
 * A user, in `views.users`.
 */
export interface UserRow {
  user_id: string;
  name: string;
  email: string;
  role: string;
  owner: string;
  sharing: boolean;
}

/**
 * `views.users`.
 */
export interface UsersAnswer {
  page: number | null;
  more: boolean | null;
  next: string | null;
  status: "done" | "refused";
  viewer: string | null;
  reason?: Reason | null;
  detail?: string | null;
  rows: Array<UserRow> | null;
}

/**
 * `views.overview`, `views.orders`, `views.billing`, `views.users`: who looks, at what, and at which page.
 *
 * `next` is what `next` was in the answer before. `page` counts pages from 1, as far as there is no `next`.
 */
export interface View {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
}

/**
 * `views.changes`: who changed what; of one user, role or plan if `subject` is given.
 */
export interface ViewChanges {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
  subject?: string | null;
}

/**
 * `views.message`: the answer to one send job, read back.
 */
export interface ViewMessage {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
  job_id: string;
}

/**
 * `views.statement`: the entries of the owner's accounts, newest first, or what is behind one of them.
 *
 * It has no numbered pages.
 */
export interface ViewStatement {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
  entry?: string | null;
}

/**
 * `views.explain`: the same, with what led to it.
 */
export interface ViewStory {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
  job_id: string;
}

/**
 * `views.usage`: by user, day and kind, or one row a message.
 */
export interface ViewUsage {
  viewer: string;
  of?: "owner" | "self";
  since?: string | null;
  until?: string | null;
  page?: number;
  next?: string | null;
  by?: "day" | "message";
}

/** The message of each task. */
export interface Messages {
  "email.send": SendEmail;
  "sms.send": SendSms;
  "email.send_many": SendManyEmails;
  "sms.send_many": SendManySms;
  "credits.purchase": Purchase;
  "credits.reverse": Reversal;
  "credits.adjust": Adjustment;
  "credits.set_owner": SetOwner;
  "users.save": SaveUser;
  "roles.save": SaveRole;
  "plans.save": SavePlan;
  "messages.cancel": CancelMessages;
  "users.erase": EraseUser;
  "views.overview": View;
  "views.usage": ViewUsage;
  "views.orders": View;
  "views.statement": ViewStatement;
  "views.billing": View;
  "views.users": View;
  "views.changes": ViewChanges;
  "views.message": ViewMessage;
  "views.explain": ViewStory;
}

/** The answer of each task. Later releases may add fields. */
export interface Answers {
  "email.send": SendAnswer;
  "sms.send": SendAnswer;
  "email.send_many": SendAnswer;
  "sms.send_many": SendAnswer;
  "credits.purchase": PurchaseAnswer;
  "credits.reverse": ReversalAnswer;
  "credits.adjust": AdjustmentAnswer;
  "credits.set_owner": OwnerAnswer;
  "users.save": UserAnswer;
  "roles.save": RoleAnswer;
  "plans.save": PlanAnswer;
  "messages.cancel": CancelAnswer;
  "users.erase": ErasureAnswer;
  "views.overview": OverviewAnswer;
  "views.usage": UsageAnswer;
  "views.orders": OrdersAnswer;
  "views.statement": StatementAnswer | EntryAnswer;
  "views.billing": BillingAnswer;
  "views.users": UsersAnswer;
  "views.changes": ChangesAnswer;
  "views.message": SendAnswer;
  "views.explain": StoryAnswer;
}

/** Why a job was refused, or failed. */
export type Reason = "invalid_job" | "conflicting_job" | "unknown_user" | "unknown_plan" | "insufficient_credits" | "not_permitted" | "other_organization" | "owner_is_credit_user" | "user_has_credit_users" | "user_has_open_messages" | "purchase_for_self_while_sharing" | "billing_information_missing" | "recipient_refused" | "carrier_refused" | "carrier_unavailable" | "not_found" | "stale" | "too_large" | "nothing_remaining" | "expired" | "cancelled";
export type Task = keyof Messages;
/** The tasks that send. They keep no result: `views.message` has their answer. */
export type SendTask = "email.send" | "sms.send" | "email.send_many" | "sms.send_many";
export declare const QUEUES: Readonly<Record<Task, string>>;
export declare const NEEDED: Readonly<Record<Task, readonly string[]>>;
export declare const OPTIONAL: Readonly<Record<Task, readonly string[]>>;
export declare const SEND_TASKS: readonly string[];
export declare const ID: RegExp;
export declare const ID_FIELDS: readonly string[];
export declare const USER_FIELDS: readonly string[];
