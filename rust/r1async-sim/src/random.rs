//! Random numbers by name: each is a pure function of the seed, what it is for, and a number.

/// What a number is drawn for. Streams of different purposes are independent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    GroupLength = 1,
    RolloutLength,
    PassRate,
    Reward,
    Verdict,
    Failure,
}

/// An endless stream of random numbers: SplitMix64 (Steele, Lea, Flood 2014), begun at a hashed place.
#[derive(Debug)]
pub(crate) struct Stream(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stream {
    pub(crate) fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let named = mix(seed.wrapping_add(STEP)) ^ mix((purpose as u64).wrapping_mul(STEP));
        Self(mix(named ^ mix(index.wrapping_add(STEP))))
    }

    /// Above 0 and below 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(STEP);
        ((mix(self.0) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Mean 0, standard deviation 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Of mean `shape` and scale 1 (Marsaglia and Tsang 2000).
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.uniform().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta(a, b), from 0 to 1.
    pub(crate) fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        if x + y > 0.0 { x / (x + y) } else { 0.5 }
    }
}

/// The share of a normal distribution below `z`, to 1e-7 (Abramowitz and Stegun, 7.1.26).
pub(crate) fn normal_share_below(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let above = 0.5 * series * (-x * x).exp();
    if z > 0.0 { 1.0 - above } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(count: u64, draw: impl Fn(&mut Stream) -> f64) -> f64 {
        let draws = (0..count).map(|index| draw(&mut Stream::new(7, Purpose::Reward, index)));
        draws.sum::<f64>() / count as f64
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 200_000;
        assert!((mean(n, Stream::uniform) - 0.5).abs() < 0.003);
        assert!(mean(n, Stream::normal).abs() < 0.01);
        assert!((mean(n, |stream| stream.normal().powi(2)) - 1.0).abs() < 0.02);
        assert!((mean(n, |stream| stream.beta(2.0, 6.0)) - 0.25).abs() < 0.003);
        assert!((mean(n, |stream| stream.beta(0.5, 0.5)) - 0.5).abs() < 0.003);
    }

    #[test]
    fn a_number_depends_on_its_name_alone() {
        let draw = |seed, purpose, index| Stream::new(seed, purpose, index).uniform();
        assert_eq!(draw(1, Purpose::Reward, 5), draw(1, Purpose::Reward, 5));
        assert_ne!(draw(1, Purpose::Reward, 5), draw(2, Purpose::Reward, 5));
        assert_ne!(draw(1, Purpose::Reward, 5), draw(1, Purpose::Verdict, 5));
        assert_ne!(draw(1, Purpose::Reward, 5), draw(1, Purpose::Reward, 6));
    }

    #[test]
    fn normal_shares_are_those_of_tables() {
        for (z, share) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.959_964, 0.025)] {
            assert!((normal_share_below(z) - share).abs() < 2e-7);
        }
    }
}
