export { PostageClient } from "./lib/client.js";
export { BrokerAwayError, EnqueueError, InvalidJobError, NoAnswerError } from "./lib/errors.js";
