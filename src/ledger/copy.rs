//! Encodes rows in the binary format of COPY, and event times as timestamps.

use std::error::Error;
use std::io::Write;

use bytes::BytesMut;
use postgres::CopyInWriter;
use postgres::types::{FromSql, IsNull, ToSql, Type};
use sessionizer_core::time::EventTime;

/// 2000-01-01T00:00:00Z in milliseconds since 1970: the origin of Postgres timestamps.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
/// How many bytes to buffer before passing them to the connection.
const CHUNK_BYTES: usize = 64 * 1024;

/// Microseconds since 2000: the wire format of both timestamp types.
fn to_postgres(time: EventTime) -> i64 {
    // Rows written by other programs may begin or end at infinity.
    time.millis().saturating_sub(POSTGRES_EPOCH_MS).saturating_mul(1_000)
}

/// A timestamp, with or without time zone (without, it is in UTC), as a parameter or a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timestamp(pub EventTime);

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&to_postgres(self.0).to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }

    postgres::types::to_sql_checked!();
}

impl FromSql<'_> for Timestamp {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        Ok(Timestamp(EventTime::from_millis(micros.div_euclid(1_000)).plus(POSTGRES_EPOCH_MS)))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }
}

/// Writes rows into a `COPY ... FROM STDIN (FORMAT binary)`.
pub struct BinaryCopy<'a> {
    writer: CopyInWriter<'a>,
    buffer: Vec<u8>,
}

impl<'a> BinaryCopy<'a> {
    /// Begins the stream.
    pub fn new(writer: CopyInWriter<'a>) -> Self {
        let mut buffer = Vec::with_capacity(CHUNK_BYTES + 4_096);
        buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.extend_from_slice(&[0; 8]); // No flags, no extension of the header.
        BinaryCopy { writer, buffer }
    }

    /// Begins a row of `columns` fields. Exactly that many must follow.
    pub fn row(&mut self, columns: i16) -> std::io::Result<()> {
        if self.buffer.len() >= CHUNK_BYTES {
            self.writer.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        self.buffer.extend_from_slice(&columns.to_be_bytes());
        Ok(())
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(Some(text.as_bytes()));
    }

    pub fn bytes(&mut self, bytes: Option<&[u8]>) {
        let length = bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("below 2 GiB"));
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(bytes.unwrap_or_default());
    }

    pub fn int4(&mut self, value: i32) {
        self.bytes(Some(&value.to_be_bytes()));
    }

    pub fn int8(&mut self, value: i64) {
        self.bytes(Some(&value.to_be_bytes()));
    }

    pub fn time(&mut self, time: EventTime) {
        self.int8(to_postgres(time));
    }

    /// Ends the stream; returns the number of rows that Postgres stored.
    pub fn finish(mut self) -> Result<u64, CopyError> {
        self.buffer.extend_from_slice(&(-1i16).to_be_bytes());
        self.writer.write_all(&self.buffer)?;
        Ok(self.writer.finish()?)
    }
}

/// A COPY fails while it sends or when it finishes; both are errors of the connection.
#[derive(Debug)]
pub enum CopyError {
    Write(std::io::Error),
    Finish(postgres::Error),
}

impl From<std::io::Error> for CopyError {
    fn from(why: std::io::Error) -> Self {
        CopyError::Write(why)
    }
}

impl From<postgres::Error> for CopyError {
    fn from(why: postgres::Error) -> Self {
        CopyError::Finish(why)
    }
}

impl CopyError {
    /// Returns the Postgres error within, if any.
    pub fn postgres(&self) -> Option<&postgres::Error> {
        match self {
            CopyError::Finish(why) => Some(why),
            CopyError::Write(why) => why.get_ref()?.downcast_ref(),
        }
    }
}
