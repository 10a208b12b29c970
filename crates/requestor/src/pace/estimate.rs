//! When it is best to ask again. Pure.

use std::time::Duration;

/// What one poll that comes too early is worth waiting for, as a share of how long the operation probably takes in all.
///
/// Waiting longer makes fewer polls and a longer wait after the end. At this share, the simulation below makes 1.1 polls
/// more than needed and waits 26 % longer, over operations of very mixed length.
const POLL_WORTH: f64 = 0.3;
/// A provider's percentages are seldom so even that they say anything before this.
const PERCENT_MIN: f64 = 5.0;

/// What is known of an operation and of those before it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlook<'a> {
    /// How long operations of its kind took lately, once they were begun; in any order.
    pub(super) took: &'a [Duration],
    /// How many are before it, those under way included.
    pub(super) ahead: usize,
    /// How many are worked on at once, at least 1.
    pub(super) slots: usize,
    /// How long since it was begun; since it was accepted, if nothing is known of that.
    pub(super) elapsed: Duration,
    /// How far its provider says that it is, from 0 to 100, and how long ago that was.
    pub(super) report: Option<(f64, Duration)>,
}

/// How long to wait before asking again, without regard to any bounds.
pub(super) fn wait(outlook: &Outlook<'_>) -> Duration {
    if let Some(left) = left_by_percent(outlook) {
        return left;
    }
    match queue(outlook) {
        // In its turn it has everything before it.
        Some(queue) => queue + best(outlook.took, Duration::ZERO),
        None => best(outlook.took, outlook.elapsed),
    }
}

/// How long until it is begun, if that is not yet: each of those ahead that is too many takes its time in one of the
/// slots.
fn queue(outlook: &Outlook<'_>) -> Option<Duration> {
    let ends_first = (outlook.ahead + 1).checked_sub(outlook.slots.max(1)).filter(|ends| *ends > 0)?;
    let mean = outlook.took.iter().sum::<Duration>().checked_div(u32::try_from(outlook.took.len()).ok()?)?;
    Some(mean.mul_f64(ends_first as f64 / outlook.slots.max(1) as f64))
}

/// What is left if the work goes on as evenly as until the last report; none if there is nothing to go by, or if it
/// should have ended by that.
fn left_by_percent(outlook: &Outlook<'_>) -> Option<Duration> {
    let (percent, ago) = outlook.report.filter(|(percent, _)| (PERCENT_MIN..100.0).contains(percent))?;
    let until_then = outlook.elapsed.saturating_sub(ago);
    let left = until_then.mul_f64((100.0 - percent) / percent).checked_sub(ago)?;
    // Who says 99 % for long is not asked every second.
    Some(left.max(outlook.elapsed / 20))
}

/// The wait of least expected cost, where too early costs another poll, and too late the time in between; by what those
/// had before them that lasted longer than `elapsed`.
fn best(took: &[Duration], elapsed: Duration) -> Duration {
    let mut left: Vec<f64> =
        took.iter().filter_map(|took| took.checked_sub(elapsed)).map(|d| d.as_secs_f64()).collect();
    left.sort_unstable_by(f64::total_cmp);
    let Some(median) = left.get(left.len() / 2) else {
        // What has lasted longer than any other may well last half as long again.
        return elapsed / 2;
    };
    let poll = POLL_WORTH * (elapsed.as_secs_f64() + median);
    let (mut sum, mut least) = (0.0, (f64::INFINITY, 0.0));
    for (place, &wait) in left.iter().enumerate() {
        sum += wait;
        let (done, open) = (place as f64 + 1.0, (left.len() - place - 1) as f64);
        let cost = poll * open + (done * wait - sum);
        if cost < least.0 {
            least = (cost, wait);
        }
    }
    Duration::from_secs_f64(least.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::VecDeque;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn of(took: &[Duration], elapsed: u64) -> Outlook<'_> {
        Outlook { took, slots: 1, elapsed: seconds(elapsed), ..Outlook::default() }
    }

    #[test]
    fn what_always_takes_the_same_is_asked_for_at_its_end() {
        let took = [seconds(30); 20];
        assert_eq!(wait(&of(&took, 0)), seconds(30));
        assert_eq!(wait(&of(&took, 12)), seconds(18));
        assert_eq!(wait(&of(&took, 40)), seconds(20), "nobody knows");
        assert_eq!(wait(&of(&[], 40)), seconds(20));
    }

    #[test]
    fn of_two_lengths_the_short_one_is_asked_for_first_and_then_the_long_one() {
        let mut took = vec![seconds(5); 10];
        took.extend([seconds(60); 10]);
        assert_eq!(wait(&of(&took, 0)), seconds(5));
        assert_eq!(wait(&of(&took, 6)), seconds(54));
    }

    #[test]
    fn those_ahead_are_waited_for() {
        let took = [seconds(10); 5];
        let behind = |ahead, slots| wait(&Outlook { ahead, slots, ..of(&took, 3) });
        assert_eq!(behind(0, 1), seconds(7));
        assert_eq!(behind(3, 4), seconds(7), "it has a slot of its own");
        assert_eq!(behind(1, 1), seconds(20));
        assert_eq!(behind(9, 1), seconds(100));
        assert_eq!(behind(7, 4), seconds(20));
        assert_eq!(wait(&Outlook { ahead: 9, slots: 1, ..of(&[], 4) }), seconds(2), "nothing is known");
    }

    #[test]
    fn a_provider_that_says_how_far_it_is_is_believed() {
        let took = [seconds(10); 5];
        let at = |percent, ago, elapsed| wait(&Outlook { report: Some((percent, seconds(ago))), ..of(&took, elapsed) });
        assert_eq!(at(50.0, 0, 60), seconds(60));
        assert_eq!(at(50.0, 10, 70), seconds(50));
        assert_eq!(at(1.0, 0, 6), seconds(4), "too early to tell");
        assert_eq!(at(99.0, 0, 2000), seconds(100), "not every second");
        assert_eq!(at(50.0, 30, 50), seconds(25), "it should have ended by that");
    }

    /// Polls that found it open, and how much later than its end it was found ended, for one that takes `takes` seconds.
    fn follow(takes: f64, lately: &[Duration], percent: bool) -> (f64, f64) {
        let (mut now, mut polls) = (0.0, 0.0);
        loop {
            let elapsed = Duration::from_secs_f64(now);
            let report = percent.then(|| ((now / takes * 100.0).floor(), Duration::ZERO));
            let outlook = Outlook { took: lately, slots: 1, elapsed, report, ..Outlook::default() };
            now += wait(&outlook).as_secs_f64().ceil().max(1.0);
            if now >= takes {
                return (polls, now - takes);
            }
            polls += 1.0;
        }
    }

    /// Follows 1,000 operations whose lengths are drawn; the mean of polls too many, and of the wait after the end in
    /// percent of the length.
    fn simulate(name: &str, percent: bool, mut draw: impl FnMut(&mut StdRng) -> f64) -> (f64, f64) {
        let (mut rng, mut lately) = (StdRng::seed_from_u64(7), VecDeque::new());
        let (mut polls, mut late) = (0.0, 0.0);
        for _ in 0..1000 {
            let takes = draw(&mut rng);
            let (more, after) = follow(takes, lately.make_contiguous(), percent);
            polls += more / 1000.0;
            late += after / takes / 10.0;
            lately.push_back(Duration::from_secs_f64(takes));
            lately.truncate(lately.len().min(super::super::WINDOW + 1));
            if lately.len() > super::super::WINDOW {
                lately.pop_front();
            }
        }
        println!("{name:<28} {polls:>5.2} polls too many, {late:>5.1} % longer");
        (polls, late)
    }

    fn log_normal(rng: &mut StdRng, median: f64, sigma: f64) -> f64 {
        // Box and Muller.
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        median * (sigma * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()).exp()
    }

    fn around(rng: &mut StdRng, seconds: f64, share: f64) -> f64 {
        seconds * rng.random_range(1.0 - share..1.0 + share)
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "the figures are what the test is for")]
    fn callers_poll_once_or_twice_too_often_and_learn_of_the_end_soon() {
        let constant = |rng: &mut StdRng| around(rng, 30.0, 0.02);
        let bimodal = |rng: &mut StdRng| {
            let typical = if rng.random_bool(0.5) { 5.0 } else { 60.0 };
            around(rng, typical, 0.1)
        };
        let skewed = |rng: &mut StdRng| log_normal(rng, 20.0, 0.8);
        let mixed = |rng: &mut StdRng| match rng.random_range(0..3) {
            0 => constant(rng),
            1 => bimodal(rng),
            _ => skewed(rng),
        };
        let figures = [
            (simulate("constant, 30 s", false, constant), (0.5, 10.0)),
            (simulate("bimodal, 5 s and 60 s", false, bimodal), (1.0, 25.0)),
            (simulate("log-normal, median 20 s", false, skewed), (2.5, 50.0)),
            (simulate("mixed", false, mixed), (2.0, 40.0)),
            (simulate("mixed, with percentages", true, mixed), (2.0, 20.0)),
        ];
        for ((polls, late), (polls_max, late_max)) in figures {
            assert!(polls <= polls_max && late <= late_max, "{polls} polls too many, {late} % longer");
        }
        let means = figures.map(|(figure, _)| figure);
        println!(
            "mean of the first three: {:.2} polls too many, {:.1} % longer",
            means[..3].iter().map(|mean| mean.0).sum::<f64>() / 3.0,
            means[..3].iter().map(|mean| mean.1).sum::<f64>() / 3.0
        );
    }
}
