//! Samples and what is said of them.

/// Measurements of one thing.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds one if there is one.
    pub(super) fn push_some(&mut self, value: Option<f64>) {
        self.0.extend(value);
    }

    /// Adds many.
    pub(super) fn extend(&mut self, values: &Samples) {
        self.0.extend(&values.0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which the share `part` of them lies; none without samples.
    pub(super) fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a short list"
        )]
        let index = (last as f64 * part).round() as usize;
        sorted.get(index).copied()
    }

    /// The median.
    pub(super) fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// The mean, for what is measured more coarsely than it is small.
    #[expect(clippy::cast_precision_loss, reason = "a count of samples")]
    pub(super) fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }

    /// The 99th percentile.
    pub(super) fn p99(&self) -> Option<f64> {
        self.quantile(0.99)
    }
}

/// `a / b` if both are there and `b` is not nothing.
pub(super) fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) if b > 0.0 => Some(a / b),
        _ => None,
    }
}

/// A number with about three digits, thousands grouped.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let whole = format!("{value:.0}");
            let mut text = String::new();
            for (index, digit) in whole.chars().enumerate() {
                if index > 0 && (whole.len() - index).is_multiple_of(3) && !text.ends_with('-') {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number with its unit, or that it could not be measured.
pub(super) fn with_unit(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "not measured".to_owned(), |value| format!("{} {unit}", digits(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_digits() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), None);
        (1..=101).rev().for_each(|value| samples.push(f64::from(value)));
        assert_eq!(samples.median(), Some(51.0));
        assert_eq!(samples.p99(), Some(100.0));
        assert_eq!(digits(1_234_567.0), "1,234,567");
        assert_eq!(digits(12.34), "12.3");
        assert_eq!(digits(0.123), "0.12");
        assert_eq!(ratio(Some(3.0), Some(2.0)), Some(1.5));
        assert_eq!(ratio(Some(3.0), Some(0.0)), None);
    }
}
