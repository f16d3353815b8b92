-- The keys of a queue that senders share, put before each script that uses them.
--
--   <queue>                      list    what producers push: new messages at its head, the oldest at its tail
--   postage.line:<queue>:<sender>  list  the messages of one sender, in the same order; the sender may be empty
--   postage.lines:<queue>        list    the senders who have messages there; the one whose turn is next at its tail
--   postage.resumes:<queue>      list    messages of <kind>.resume, each of which stands for many jobs
--
-- The names stay as they are: after an upgrade the new workers must find what the old ones have put there.
local SENDERS, SENDER, RESUMES = 'postage.lines:', 'postage.line:', 'postage.resumes:'
