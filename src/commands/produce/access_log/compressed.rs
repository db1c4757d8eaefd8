//! Recognises compressed files by their first bytes, and knows what makes a log of them.

/// How many bytes of a file are needed.
pub const MAGIC_BYTES: usize = 10;

/// A compression that is not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    /// How a file of this format begins.
    magic: &'static [u8],
    pub name: &'static str,
    /// The command that writes the content to its standard output.
    command: &'static str,
}

const fn format(magic: &'static [u8], name: &'static str, command: &'static str) -> Format {
    Format { magic, name, command }
}

const FORMATS: [Format; 11] = [
    format(b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    format(b"\xfd7zXZ\0", "xz", "xz -dc"),
    format(b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
    format(b"\x02\x21\x4c\x18", "lz4", "lz4 -dc"),
    format(b"PK\x03\x04", "zip", "unzip -p"),
    format(b"PK\x05\x06", "zip", "unzip -p"),
    format(b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z e -so"),
    format(b"\x1f\x9d", "compress", "gzip -dc"),
    format(b"LZIP\x01", "lzip", "lzip -dc"),
    // A number from 1 to 9 comes between, and both are letters.
    format(b"1AY&SY", "bzip2", "bzip2 -dc"),
    format(b"\x17\x72\x45\x38\x50\x90", "bzip2", "bzip2 -dc"),
];

impl Format {
    /// The format of a file that begins like this, if it is one of them.
    pub fn of(start: &[u8]) -> Option<Format> {
        let start = match start {
            [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] => block,
            other => other,
        };
        FORMATS.into_iter().find(|format| start.starts_with(format.magic))
    }

    /// How a file of this format becomes events. `-` is the standard input.
    pub fn remedy(&self, path: &str) -> String {
        let file = if path == "-" { "FILE".to_owned() } else { quoted(path) };
        format!("{} {file} | sessionizer produce --access-log - ...", self.command)
    }
}

/// A word of a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_file_is_named_by_its_first_bytes() {
        for (start, name, command) in [
            (&b"\x28\xb5\x2f\xfd\x04\x00"[..], "zstd", "zstd -dc log | sessionizer produce"),
            (b"BZh91AY&SY\x9d", "bzip2", "bzip2 -dc log |"),
            (b"BZh9\x17\x72\x45\x38\x50\x90", "bzip2", "bzip2 -dc log |"),
            (b"\xfd7zXZ\x00\x00", "xz", "xz -dc log |"),
            (b"PK\x03\x04\x14", "zip", "unzip -p log |"),
            (b"\x04\x22\x4d\x18\x64", "lz4", "lz4 -dc log |"),
            (b"\x1f\x9d\x90", "compress", "gzip -dc log |"),
        ] {
            let format = Format::of(start).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(format.name, name);
            assert!(format.remedy("log").starts_with(command), "{}", format.remedy("log"));
        }
        for log in [
            &b"203.0.113.9 - - ["[..],
            b"BZh9.example - -",
            b"PK - -",
            b"LZIP - -",
            b"",
            b"\x1f\x8b",
        ] {
            assert_eq!(Format::of(log), None, "{log:?}");
        }
        let zstd = Format::of(b"\x28\xb5\x2f\xfd").expect("zstd");
        assert!(zstd.remedy("a b's.zst").starts_with(r"zstd -dc 'a b'\''s.zst' | "));
        assert!(zstd.remedy("-").starts_with("zstd -dc FILE | "));
    }
}
