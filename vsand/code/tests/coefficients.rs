//! The codes themselves: which there are, what their parities are sums of, and that any loss they promise to stand can be undone.

use reed_solomon_erasure::galois_8 as field;
use vsand_code::{BadCode, Code, DATA_MAX, PARITY_MAX};

/// The codes of the product.
const PRODUCT: [(usize, usize); 4] = [(2, 1), (4, 1), (2, 2), (4, 2)];

#[test]
fn codes_out_of_bounds_are_refused() {
    assert_eq!(Code::new(0, 1), Err(BadCode::Data(0)));
    assert_eq!(Code::new(DATA_MAX + 1, 1), Err(BadCode::Data(17)));
    assert_eq!(Code::new(4, 0), Err(BadCode::Parity(0)));
    assert_eq!(Code::new(4, PARITY_MAX + 1), Err(BadCode::Parity(5)));
    let text = BadCode::Data(17).to_string();
    assert_eq!(text, "a code has 1 to 16 data shards, not 17: choose another stripe width");
    for (data, parity) in PRODUCT {
        let code = Code::new(data, parity).expect("a code of the product");
        assert_eq!((code.data(), code.parity(), code.shards()), (data, parity, data + parity));
    }
}

#[test]
fn parity_0_is_the_xor_and_parity_1_is_that_of_raid_6() {
    let code = Code::new(DATA_MAX, PARITY_MAX).expect("the widest");
    for shard in 0..DATA_MAX {
        assert_eq!(code.coefficient(0, shard), 1);
        for parity in 0..PARITY_MAX {
            assert_eq!(code.coefficient(parity, shard), field::exp(2, parity * shard));
        }
    }
    // Anvin's example in numbers: Q of the bytes 1, 1, 1, 1 is 1 + 2 + 4 + 8.
    let ones = [[1_u8; 64]; 4];
    let ones: Vec<&[u8]> = ones.iter().map(|block| &block[..]).collect();
    let parity = Code::new(4, 2).expect("4+2").encode(&ones);
    assert_eq!(parity, [vec![0; 64], vec![15; 64]]);
}

fn determinant(mut matrix: Vec<Vec<u8>>) -> u8 {
    let mut product = 1;
    for column in 0..matrix.len() {
        let Some(pivot) = (column..matrix.len()).find(|row| matrix[*row][column] != 0) else { return 0 };
        // No signs: the field has characteristic 2.
        matrix.swap(column, pivot);
        let top = matrix[column].clone();
        product = field::mul(product, top[column]);
        for row in &mut matrix[column + 1..] {
            let by = field::div(row[column], top[column]);
            for (x, y) in row.iter_mut().zip(&top) {
                *x ^= field::mul(by, *y);
            }
        }
    }
    product
}

fn bits(set: u32) -> Vec<usize> {
    (0..32).filter(|bit| set >> bit & 1 == 1).collect()
}

/// Then any `data` of the blocks give all others, of this code and of all narrower ones.
#[test]
fn every_square_part_of_the_coefficients_can_be_inverted() {
    let code = Code::new(DATA_MAX, PARITY_MAX).expect("the widest");
    let mut parts = 0;
    for parities in 1..1_u32 << PARITY_MAX {
        for shards in 1..1_u32 << DATA_MAX {
            if shards.count_ones() == parities.count_ones() {
                let row = |p: usize| bits(shards).iter().map(|i| code.coefficient(p, *i)).collect();
                let part = bits(parities).into_iter().map(row).collect();
                assert_ne!(determinant(part), 0, "parities {parities:b} of data {shards:b}");
                parts += 1;
            }
        }
    }
    assert_eq!(parts, 4 * 16 + 6 * 120 + 4 * 560 + 1820);
}
