-- The newest session_end of the rows that the table had before the job. What begins later is the
-- job's own, and audits compare it exactly. Null: there were none, or the job is of a version that
-- did not note it.
alter table sessionizer.jobs add column if not exists found_rows_to timestamptz;
