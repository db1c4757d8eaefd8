//! Encryption without verification, as `sslmode=prefer` and `require` ask for.
//!
//! OpenSSL reads and parses all certificates in its default places before it can connect, which takes
//! longer than everything else about a connection. Nothing is compared with them here, so it is done
//! once in a process, and only if a server offers TLS at all.

use std::error::Error;
use std::pin::Pin;
use std::sync::OnceLock;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use postgres::Socket;
use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres_openssl::{MakeTlsConnector, TlsStream};

static CONNECTOR: OnceLock<MakeTlsConnector> = OnceLock::new();

fn connector() -> Result<MakeTlsConnector, ErrorStack> {
    if let Some(known) = CONNECTOR.get() {
        return Ok(known.clone());
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    let mut connector = MakeTlsConnector::new(builder.build());
    connector.set_callback(|connection, _| {
        connection.set_verify_hostname(false);
        Ok(())
    });
    Ok(CONNECTOR.get_or_init(|| connector).clone())
}

/// Encrypts and verifies nothing.
#[derive(Clone, Debug)]
pub struct Unverified;

/// The same, for one host.
#[derive(Debug)]
pub struct UnverifiedHost(String);

type Failure = Box<dyn Error + Send + Sync>;

impl MakeTlsConnect<Socket> for Unverified {
    type Stream = TlsStream<Socket>;
    type TlsConnect = UnverifiedHost;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<UnverifiedHost, Self::Error> {
        Ok(UnverifiedHost(host.to_owned()))
    }
}

impl TlsConnect<Socket> for UnverifiedHost {
    type Stream = TlsStream<Socket>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<TlsStream<Socket>, Failure>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move {
            let of_host = MakeTlsConnect::<Socket>::make_tls_connect(&mut connector()?, &self.0)?;
            of_host.connect(stream).await
        })
    }
}
