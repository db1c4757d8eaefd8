-- Creates a login that may do exactly what the job does.
--
--     psql -v role=sessionizer -v table=sessionized_events -f deploy/postgres/role.sql DATABASE
--
-- Run it in the job's database, as a superuser, or as a role that may create roles and owns the
-- database and the table. Running it again only grants what is missing.
--
--   role      the login; created without a password: set one with \password ROLE
--   table     the table of sessions (default sessionized_events); names are taken literally
--   schema    the schema of that table (default public)
--
-- An existing table keeps its owner, and the role may select, insert and delete its rows. A missing
-- table is created here, because the role may not create anything in that schema. The job's own
-- tables are in the schema `sessionizer`, which belongs to the role. If a job has already run with
-- another login, that schema keeps its owner, and the role gets the rights that it needs there.

\set ON_ERROR_STOP on
\if :{?role}
\else
do $$ begin raise exception 'the login is missing: psql -v role=NAME -f role.sql'; end $$;
\endif
\if :{?table}
\else
\set table sessionized_events
\endif
\if :{?schema}
\else
\set schema public
\endif

begin;
set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;

select format('create role %I login', :'role')
where not exists (select from pg_roles where rolname = :'role') \gexec

-- Take away every attribute that gives the role more than that.
alter role :"role" nosuperuser nocreatedb nocreaterole noreplication nobypassrls;

select format('grant connect on database %I to %I', current_database(), :'role') \gexec

-- Creating a schema for a role requires membership in it, except for a superuser.
select format('grant %I to %I', :'role', current_user)
where not pg_has_role(current_user, :'role', 'member') \gexec
select format('create schema sessionizer authorization %I', :'role')
where to_regnamespace('sessionizer') is null \gexec

-- Nothing of this applies to a schema that belongs to the role.
select format('grant usage on schema sessionizer to %1$I', :'role'),
       format('grant select, insert, update, delete on all tables in schema sessionizer to %1$I',
              :'role'),
       format('alter default privileges for role %2$I in schema sessionizer
               grant select, insert, update, delete on tables to %1$I',
              :'role', pg_get_userbyid(nspowner))
from pg_namespace
where nspname = 'sessionizer' and pg_get_userbyid(nspowner) <> :'role' \gexec

create table if not exists :"schema".:"table" (
    ip            text collate "C" not null,
    host          text collate "C" not null,
    session_start timestamptz(3) not null,
    session_end   timestamptz(3) not null,
    num_logs      bigint not null,
    primary key (ip, host, session_start)
);
grant usage on schema :"schema" to :"role";
grant select, insert, delete on :"schema".:"table" to :"role";

commit;
