//! MAC addresses of guests, by number.

/// The address of guest `number`.
pub fn of(number: usize) -> [u8; 6] {
    let [high, low] = (number as u16 + 1).to_be_bytes();
    [2, 0, 0, 0, high, low]
}

/// The number of the guest with this address; beyond all guests for other addresses.
#[inline(always)]
pub fn number(address: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([address[4], address[5]]).wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_whose_it_is() {
        for guest in [0, 1, 254, 255, 256, 511] {
            assert_eq!(number(&of(guest)), guest);
        }
    }
}
