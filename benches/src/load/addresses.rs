//! MAC addresses of guests, by number.

/// The address of guest `number`.
pub fn of(number: usize) -> [u8; 6] {
    let [high, low] = (number as u16 + 1).to_be_bytes();
    [2, 0, 0, 0, high, low]
}
