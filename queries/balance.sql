-- Is every record that each job has read accounted for?
--
-- A record is in a session that has closed (a row), in one that is open, or a dead letter. The
-- difference is zero after every commit; anything else is a bug of the job, or somebody has changed
-- its books by hand.

select job, records, closed, open, dead, difference,
       case difference when 0 then 'yes' else 'NO' end as balanced,
       as_of
from sessionizer.balance
order by job;
