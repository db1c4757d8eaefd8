//! Faults of the servers around the job.

use super::game::LAST_WORDS_S;
use super::round::Round;
use crate::failure::Result;
use crate::servers::Service;

impl Round<'_> {
    /// Restarts a server, cleanly or by a kill.
    pub fn disturb(&mut self, service: Service) -> Result<()> {
        self.started_and_nap(0, 2_500)?;
        if self.rng.one_in(2) {
            self.what += ", restarted";
            service.restart()?;
        } else {
            self.what += ", killed";
            service.kill()?;
            self.nap(500, 1_500);
            service.start_again()?;
        }
        self.nap(1_000, 2_000);
        Ok(())
    }

    /// Ends the connections of the job.
    pub fn terminate(&mut self) -> Result<()> {
        self.started_and_nap(0, 2_500)?;
        self.game.servers.postgres.sql().run(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where application_name like 'sessionizer/%'",
        )?;
        self.nap(1_000, 2_000);
        Ok(())
    }

    /// Commits are acknowledged before they are on disk, and a crash loses them.
    pub fn lose_commits(&mut self) -> Result<()> {
        let postgres = self.game.servers.postgres.clone();
        let sql = postgres.sql();
        sql.run("alter system set wal_writer_delay to '10s'")?;
        sql.run("alter system set synchronous_commit to off")?;
        sql.run("select pg_reload_conf()")?;
        self.started_and_nap(500, 4_000)?;
        postgres.kill()?;
        postgres.start_again()?;
        sql.run("alter system reset wal_writer_delay")?;
        sql.run("alter system reset synchronous_commit")?;
        sql.run("select pg_reload_conf()")?;
        self.go_on_from_there()
    }

    /// Starts a standby. The job of this round is given the addresses of both servers.
    pub fn make_standby(&mut self) -> Result<()> {
        let directory = self.game.servers.file(&format!("postgres.{}", self.number));
        let standby = self.game.servers.postgres.standby(&directory)?;
        self.game.standby = Some(standby);
        Ok(())
    }

    /// Removes the primary. The standby may lack its last commits.
    pub fn promote(&mut self) -> Result<()> {
        self.started_and_nap(0, 2_500)?;
        let standby = self.game.standby.clone().expect("made before the start");
        if !self.rng.one_in(3) {
            self.what += ", lagging";
            let sql = standby.sql();
            sql.run("alter system set primary_conninfo to ''")?;
            sql.run("select pg_reload_conf()")?;
            self.nap(300, 2_000);
        }
        let primary = std::mem::replace(&mut self.game.servers.postgres, standby);
        primary.kill()?;
        self.nap(0, 1_000);
        primary.remove()?;
        self.game.servers.postgres.sql().run("select pg_promote()")?;
        self.go_on_from_there()?;
        self.game.standby = None;
        Ok(())
    }

    /// When its database has gone back, a job of one process continues by itself. All processes of
    /// a cluster end, and are started again.
    fn go_on_from_there(&mut self) -> Result<()> {
        self.nap(2_500, 4_000);
        if self.job.processes == 1 || !self.job.has_ended()? {
            return Ok(());
        }
        let processes = self.job.processes;
        self.ended_by_itself(LAST_WORDS_S, &[1, 4])?;
        self.what += ", started again";
        self.job = self.game.start_processes(processes, &self.settings)?;
        self.started_and_nap(500, 2_000)
    }
}
