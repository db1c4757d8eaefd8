//! The keys of open sessions, stored one after another in large blocks: a key costs its bytes and
//! its length, not an allocation.

/// The position of a key among the [`Keys`], in units of [`KEY_UNIT`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct KeyAt(u32);

/// The keys of a shard, each preceded by its length, one after another. A freed place is reused for
/// a key of about the same length.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) bytes: Vec<u8>,
    /// Free places, by their length in units.
    free: Vec<Vec<KeyAt>>,
}

const KEY_UNIT: usize = 8;

impl Keys {
    #[inline]
    pub(super) fn get(&self, key: KeyAt) -> &[u8] {
        let at = key.0 as usize * KEY_UNIT;
        let length = usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        &self.bytes[at + 2..at + 2 + length]
    }

    pub(super) fn add(&mut self, key: &[u8]) -> KeyAt {
        let length = u16::try_from(key.len()).expect("the decoder bounds the key");
        let units = (2 + key.len()).div_ceil(KEY_UNIT);
        let place = match self.free.get_mut(units).and_then(Vec::pop) {
            Some(place) => place,
            None => {
                let at = self.bytes.len();
                self.bytes.resize(at + units * KEY_UNIT, 0);
                KeyAt(u32::try_from(at / KEY_UNIT).expect("less than 32 GiB of keys a shard"))
            }
        };
        let at = place.0 as usize * KEY_UNIT;
        self.bytes[at..at + 2].copy_from_slice(&length.to_le_bytes());
        self.bytes[at + 2..at + 2 + key.len()].copy_from_slice(key);
        place
    }

    /// How many bytes are allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        let free = self.free.iter().map(|places| places.capacity() * size_of::<KeyAt>());
        self.bytes.capacity() + free.sum::<usize>()
    }

    pub(super) fn remove(&mut self, key: KeyAt) {
        let units = (2 + self.get(key).len()).div_ceil(KEY_UNIT);
        if self.free.len() <= units {
            self.free.resize_with(units + 1, Vec::new);
        }
        self.free[units].push(key);
    }
}
