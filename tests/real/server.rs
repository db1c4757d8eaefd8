//! Private PostgreSQL servers of tests.

use std::path::PathBuf;
use std::process::Command;

/// A private PostgreSQL of a test, removed with it.
pub struct Server {
    pub directory: PathBuf,
    /// `host:port`, the same after every restart.
    pub address: String,
}

impl Server {
    /// Starts one; `test` names its directory.
    pub fn start(test: &str) -> Server {
        let mut server = Server { directory: directory(test), address: String::new() };
        server.address = server.act("start");
        server
    }

    /// Starts a copy that follows this one.
    pub fn standby(&self, test: &str) -> Server {
        let mut server = Server { directory: directory(test), address: String::new() };
        server.address = server.act_with("standby", &[self.directory.as_os_str()]);
        server
    }

    /// What `scripts/services postgres` can do with it: start, stop, kill, restart.
    pub fn act(&self, verb: &str) -> String {
        self.act_with(verb, &[])
    }

    fn act_with(&self, verb: &str, args: &[&std::ffi::OsStr]) -> String {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services"))
            .args(["postgres", verb])
            .arg(&self.directory)
            .args(args)
            .output()
            .expect("scripts/services can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// The directory; a broker of a test with the same name has another one.
fn directory(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pg-{test}-{}", std::process::id()))
}

impl Drop for Server {
    fn drop(&mut self) {
        // A panic within a panic would end the whole test program, and leave other servers behind.
        if std::panic::catch_unwind(|| self.act("kill")).is_ok() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}
