//! A connection between two processes: encrypted and authenticated with the cluster secret, or in
//! the clear if there is none.
//!
//! Encryption is TLS 1.3 with a pre-shared key and an ephemeral Diffie-Hellman exchange
//! (`psk_dhe_ke`). The handshake is the challenge and response: both sides send a nonce, both prove
//! that they know the key for exactly this pair of processes, and nothing is read or answered
//! before that. A recorded handshake cannot be replayed, a recorded connection cannot be decrypted
//! with the secret later, and a record that was changed, dropped or repeated on the way ends the
//! connection.
//!
//! An `SslStream` has one owner at a time. So traffic that flows in both directions at once takes
//! two connections, one for each direction (`wire`); a link uses one thread for both (`link`).

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use log::debug;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    ErrorCode, HandshakeError, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};

use crate::cluster::secret::SecretKey;

/// The only cipher suite. It does not limit the number of records on a connection, which lasts for
/// months, and OpenSSL does not change keys by itself. (AES-GCM has a limit, of 24 million.)
const CIPHERS: &str = "TLS_CHACHA20_POLY1305_SHA256";
/// The first byte of a TLS handshake.
const TLS_BEGINS: u8 = 0x16;

/// Whether and how connections are encrypted.
pub(super) enum Protection {
    /// Nothing is encrypted, and nobody has to prove anything.
    Open,
    Sealed(Sealed),
}

/// The two sides of an encrypted connection.
pub(super) struct Sealed {
    key: SecretKey,
    server: SslContext,
    /// Where a server stores which process has proved its identity.
    client: Index<Ssl, usize>,
}

impl Protection {
    /// Encrypts with the key, as process `me` of `processes`.
    pub fn sealed(key: SecretKey, me: usize, processes: usize) -> Result<Protection, ErrorStack> {
        let client = Ssl::new_ex_index()?;
        let mut server = context()?;
        // There are no certificates: a peer that does not know the key gets no further.
        server.set_verify(SslVerifyMode::NONE);
        server.set_num_tickets(0)?;
        let pairs = key.clone();
        server.set_psk_server_callback(move |ssl, identity, psk| {
            let named = identity.and_then(|identity| read_identity(identity, me));
            let Some(process) = named.filter(|process| *process < processes && *process != me)
            else {
                return Ok(0);
            };
            ssl.set_ex_data(client, process);
            fill(psk, &pairs.between(process, me)?)
        });
        Ok(Protection::Sealed(Sealed { key, server: server.build(), client }))
    }

    /// Connects to process `server`.
    pub fn connect(&self, socket: Socket, me: usize, server: usize) -> io::Result<Channel> {
        let Protection::Sealed(sealed) = self else { return Ok(Channel::Open(socket)) };
        let key = sealed.key.between(me, server)?;
        let mut context = context()?;
        // No certificate is ever accepted, only the key.
        context.set_verify(SslVerifyMode::PEER);
        context.set_psk_client_callback(move |_, _, identity, psk| {
            let name = [identity_of(me, server).as_bytes(), b"\0"].concat();
            fill(identity, &name)?;
            fill(psk, &key)
        });
        let stream = Ssl::new(&context.build())?.connect(socket).map_err(failed)?;
        with_the_key(stream)
    }

    /// Accepts a connection whose first byte has been received. Returns which process it is, if it
    /// had to prove that.
    pub fn accept(&self, socket: Socket, first: u8) -> io::Result<(Channel, Option<usize>)> {
        let refused = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        match self {
            Protection::Open if first == TLS_BEGINS => {
                refused("it has a cluster secret, and this process has none")
            }
            Protection::Open => Ok((Channel::Open(socket), None)),
            Protection::Sealed(_) if first == crate::cluster::greeting::FIRST => {
                refused("it has no cluster secret, and this process has one")
            }
            Protection::Sealed(_) if first != TLS_BEGINS => {
                refused("it does not speak sessionizer's protocol")
            }
            Protection::Sealed(sealed) => {
                let stream = Ssl::new(&sealed.server)?.accept(socket).map_err(failed)?;
                let client = stream.ssl().ex_data(sealed.client).copied();
                Ok((with_the_key(stream)?, client))
            }
        }
    }
}

/// The settings that both sides share.
fn context() -> Result<SslContextBuilder, ErrorStack> {
    // A new context trusts no certificate authority.
    let mut context = SslContext::builder(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_ciphersuites(CIPHERS)?;
    context.set_options(SslOptions::NO_TICKET);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    Ok(context)
}

/// With a shared key, TLS reports the session as resumed. There is no other way to complete a
/// handshake, and a peer that found one would be unknown to us.
fn with_the_key(stream: SslStream<Socket>) -> io::Result<Channel> {
    if !stream.ssl().session_reused() {
        let what = "it has not used the cluster secret";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Channel::Sealed(stream))
}

fn identity_of(client: usize, server: usize) -> String {
    format!("sessionizer 1, {client} to {server}")
}

/// The process that connects, if its identity is addressed to this one.
fn read_identity(identity: &[u8], me: usize) -> Option<usize> {
    let text = std::str::from_utf8(identity).ok()?;
    let client = text.strip_prefix("sessionizer 1, ")?.split(' ').next()?.parse().ok()?;
    (text == identity_of(client, me)).then_some(client)
}

/// Copies to the beginning of the buffer that OpenSSL provides, which has room for more than 100
/// bytes.
fn fill(place: &mut [u8], bytes: &[u8]) -> Result<usize, ErrorStack> {
    place[..bytes.len()].copy_from_slice(bytes);
    Ok(bytes.len())
}

/// Explains a failed handshake to a person.
fn failed(why: HandshakeError<Socket>) -> io::Error {
    let why = match why {
        HandshakeError::SetupFailure(why) => return why.into(),
        HandshakeError::WouldBlock(_) => return io::ErrorKind::TimedOut.into(),
        HandshakeError::Failure(stream) => stream.into_error(),
    };
    if why.code() == ErrorCode::SYSCALL && why.io_error().is_none() || is_cut(&why) {
        return io::ErrorKind::UnexpectedEof.into();
    }
    match why.into_io_error() {
        Ok(why) => why,
        Err(why) => {
            debug!("a TLS handshake failed: {why}");
            let what = "the cluster secret there is not the one here, or it is not a process of \
                        this cluster (the TLS handshake failed)";
            io::Error::new(io::ErrorKind::InvalidData, what)
        }
    }
}

/// Whether a connection ended without `close_notify`, which OpenSSL treats as an attack.
fn is_cut(why: &openssl::ssl::Error) -> bool {
    let is = |why: &openssl::error::Error| why.reason() == Some("unexpected eof while reading");
    why.ssl_error().is_some_and(|all| all.errors().iter().any(is))
}

/// A connection on which the peer has proved its identity, if that is required.
#[derive(Debug)]
pub(super) enum Channel {
    Open(Socket),
    Sealed(SslStream<Socket>),
}

impl Channel {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Channel::Open(socket) => socket,
            Channel::Sealed(stream) => stream.get_mut(),
        }
    }

    /// Ends the greeting. The arguments limit how long a single read or write may take from here
    /// on.
    pub fn greeted(&mut self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        let socket = self.socket();
        socket.until = None;
        socket.stream.set_read_timeout(read)?;
        socket.stream.set_write_timeout(write)
    }

    /// Ends the connection; if it is encrypted, tries to send `close_notify` first.
    pub fn close(&mut self) {
        if let Channel::Sealed(stream) = self {
            let _ = stream.shutdown();
        }
        let _ = self.socket().stream.shutdown(Shutdown::Both);
    }

    /// A handle to the underlying connection, to end it from another thread.
    pub fn handle(&mut self) -> io::Result<TcpStream> {
        self.socket().stream.try_clone()
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stream = match self {
            Channel::Open(socket) => return socket.read(buffer),
            Channel::Sealed(stream) => stream,
        };
        match stream.ssl_read(buffer) {
            Ok(read) => Ok(read),
            Err(why) if why.code() == ErrorCode::ZERO_RETURN => Ok(0),
            Err(why) => Err(broken(why)),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Open(socket) => socket.write(buffer),
            // OpenSSL rejects empty writes.
            Channel::Sealed(_) if buffer.is_empty() => Ok(0),
            Channel::Sealed(stream) => stream.ssl_write(buffer).map_err(broken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Neither TCP nor TLS buffers anything.
    }
}

/// Turns an error of an encrypted connection into one for readers and writers.
fn broken(why: openssl::ssl::Error) -> io::Error {
    if is_cut(&why) || why.code() == ErrorCode::SYSCALL && why.io_error().is_none() {
        return io::ErrorKind::UnexpectedEof.into();
    }
    if why.code() == ErrorCode::WANT_READ && why.io_error().is_none() {
        // A record without data: the reader tries again.
        return io::ErrorKind::Interrupted.into();
    }
    why.into_io_error().unwrap_or_else(|why| {
        debug!("an encrypted connection is broken: {why}");
        let what = "what it sends was changed on the way (it does not decrypt)";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// A TCP connection with a time limit on the whole greeting, however slowly the bytes arrive.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    until: Option<Instant>,
}

impl Socket {
    pub fn new(stream: TcpStream, whole: Duration) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        Ok(Socket { stream, until: Some(Instant::now() + whole) })
    }

    /// The time left for the greeting; `None` once it is over.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.until else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// The first byte to arrive, without consuming it.
    pub fn first_byte(&self, within: Duration) -> io::Result<u8> {
        self.stream.set_read_timeout(Some(within))?;
        let mut first = [0];
        match self.stream.peek(&mut first)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(first[0]),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_write_timeout(Some(left))?;
        }
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
