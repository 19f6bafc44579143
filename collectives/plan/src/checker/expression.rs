//! Symbolic values: which contributions a chunk holds, and by which expression.

use std::collections::HashMap;

/// An expression in [`Expressions`]; equal expressions have equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expression(u32);

/// All expressions of one run.
///
/// Numbers below `ranks * chunks` are the contributions; those above it are folds. A fold is
/// ordered, except that its first two operands may change places: addition commutes, but it is not
/// associative.
pub(super) struct Expressions {
    ranks: u32,
    chunks: u32,
    folds: Vec<Box<[u32]>>,
    index: HashMap<Box<[u32]>, u32>,
    /// Which ranks contribute to each fold: `words` numbers a fold, one bit a rank.
    contributions: Vec<u64>,
    words: usize,
    /// Structure of each fold, the same in every run.
    hashes: Vec<u64>,
    operands: Vec<u32>,
}

impl Expressions {
    pub(super) fn new(ranks: u32, chunks: u32) -> Expressions {
        Expressions {
            ranks,
            chunks,
            folds: vec![],
            index: HashMap::new(),
            contributions: vec![],
            words: (ranks as usize).div_ceil(64),
            hashes: vec![],
            operands: vec![],
        }
    }

    /// What `rank` contributes to a chunk.
    pub(super) fn contribution(&self, rank: u32, chunk: u32) -> Expression {
        Expression(rank * self.chunks + chunk)
    }

    /// The fold of several operands. An error names the ranks that it would count twice.
    pub(super) fn fold(&mut self, operands: &[Expression]) -> Result<Expression, Vec<u32>> {
        if let [only] = operands {
            return Ok(*only);
        }
        let mut key = std::mem::take(&mut self.operands);
        key.clear();
        key.extend(operands.iter().map(|operand| operand.0));
        key[..2].sort_unstable();
        let known = self.index.get(key.as_slice()).copied();
        let fold = known.map_or_else(|| self.add(&key), Ok);
        self.operands = key;
        fold.map(Expression)
    }

    /// The ranks that contribute, in order.
    pub(super) fn contributors(&self, expression: Expression) -> Vec<u32> {
        match self.fold_number(expression.0) {
            None => vec![expression.0 / self.chunks],
            Some(fold) => ranks_in(&self.contributions[fold * self.words..][..self.words]),
        }
    }

    /// Whether every rank contributes.
    pub(super) fn is_complete(&self, expression: Expression) -> bool {
        match self.fold_number(expression.0) {
            None => self.ranks == 1,
            Some(fold) => {
                let words = &self.contributions[fold * self.words..][..self.words];
                words.iter().map(|word| word.count_ones()).sum::<u32>() == self.ranks
            }
        }
    }

    /// Whether it is one fold of the contributions of all ranks to a chunk, in the order of the ranks.
    pub(super) fn is_in_rank_order(&self, expression: Expression) -> bool {
        let Some(fold) = self.fold_number(expression.0) else { return self.ranks == 1 };
        let operands = &self.folds[fold];
        let chunk = operands[0] % self.chunks;
        let in_order = (0..self.ranks).map(|rank| rank * self.chunks + chunk);
        operands.iter().copied().eq(in_order)
    }

    /// A number that is the same for the same expression in every run.
    pub(super) fn hash(&self, expression: Expression) -> u64 {
        match self.fold_number(expression.0) {
            None => mix(0, u64::from(expression.0)),
            Some(fold) => self.hashes[fold],
        }
    }

    /// The expression as text: `((0+1)+2)`.
    pub(super) fn text(&self, expression: Expression) -> String {
        match self.fold_number(expression.0) {
            None => (expression.0 / self.chunks).to_string(),
            Some(fold) => {
                let operands = self.folds[fold].iter();
                let texts: Vec<String> = operands.map(|&o| self.text(Expression(o))).collect();
                format!("({})", texts.join("+"))
            }
        }
    }

    fn fold_number(&self, expression: u32) -> Option<usize> {
        expression.checked_sub(self.ranks * self.chunks).map(|fold| fold as usize)
    }

    fn add(&mut self, operands: &[u32]) -> Result<u32, Vec<u32>> {
        let mut sum = vec![0; self.words];
        let mut twice = vec![0; self.words];
        for &operand in operands {
            match self.fold_number(operand) {
                None => unite(&mut sum, &mut twice, &self.contribution_bits(operand)),
                Some(fold) => {
                    let bits = &self.contributions[fold * self.words..][..self.words];
                    unite(&mut sum, &mut twice, bits);
                }
            }
        }
        if twice.iter().any(|word| *word != 0) {
            return Err(ranks_in(&twice));
        }
        let hashes = operands.iter().map(|&operand| self.hash(Expression(operand)));
        self.hashes.push(self.fold_hash(hashes.collect()));
        self.contributions.extend(sum);
        let number = self.ranks * self.chunks + self.folds.len() as u32;
        self.folds.push(operands.into());
        self.index.insert(operands.into(), number);
        Ok(number)
    }

    /// The first two operands have the order of their numbers, which depends on the run.
    fn fold_hash(&self, mut operands: Vec<u64>) -> u64 {
        operands[..2].sort_unstable();
        operands.into_iter().fold(1, mix)
    }

    fn contribution_bits(&self, contribution: u32) -> Vec<u64> {
        let rank = (contribution / self.chunks) as usize;
        let mut bits = vec![0; self.words];
        bits[rank / 64] = 1 << (rank % 64);
        bits
    }
}

fn unite(sum: &mut [u64], twice: &mut [u64], bits: &[u64]) {
    for ((sum, twice), bits) in sum.iter_mut().zip(twice).zip(bits) {
        *twice |= *sum & bits;
        *sum |= bits;
    }
}

fn ranks_in(words: &[u64]) -> Vec<u32> {
    let bit = |rank: &u32| words[*rank as usize / 64] >> (rank % 64) & 1 == 1;
    (0..words.len() as u32 * 64).filter(bit).collect()
}

/// The finaliser of MurmurHash3 over what came before and what is added.
pub(super) fn mix(state: u64, added: u64) -> u64 {
    let mut x = state.rotate_left(5) ^ added.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::Expressions;

    #[test]
    fn the_first_two_operands_commute_and_the_others_do_not() {
        let mut all = Expressions::new(3, 1);
        let [a, b, c] = [0, 1, 2].map(|rank| all.contribution(rank, 0));
        let ab = all.fold(&[a, b]).unwrap();
        assert_eq!(ab, all.fold(&[b, a]).unwrap());
        assert_eq!(all.fold(&[a, b, c]), all.fold(&[b, a, c]));
        assert_ne!(all.fold(&[a, b, c]), all.fold(&[a, c, b]));
        assert_ne!(all.fold(&[a, b, c]), all.fold(&[ab, c]));
        let abc = all.fold(&[c, ab]).unwrap();
        assert_eq!(all.text(abc), "(2+(0+1))");
        assert!(all.is_complete(abc) && !all.is_complete(ab));
        let [at_once, turned] = [[a, b, c], [a, c, b]].map(|order| all.fold(&order).unwrap());
        assert!(all.is_in_rank_order(at_once) && !all.is_in_rank_order(turned));
        assert!(!all.is_in_rank_order(abc) && !all.is_in_rank_order(ab));
    }

    #[test]
    fn a_contribution_counts_once() {
        let mut all = Expressions::new(70, 2);
        let (a, b) = (all.contribution(3, 1), all.contribution(69, 1));
        let ab = all.fold(&[a, b]).unwrap();
        assert_eq!(all.contributors(ab), [3, 69]);
        assert_eq!(all.fold(&[ab, b]), Err(vec![69]));
    }
}
