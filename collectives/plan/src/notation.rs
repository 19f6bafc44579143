//! How plans and programs are written out, one line a step: `Send 1 In[0]`,
//! `RecvReduce 0 In[2] -> Out[2]`.

use std::fmt;

use crate::{Action, Destination, Plan, Program, Source, Space, Span, Step};

/// `Out[2]` for one chunk, `Out[2..4]` for several, `Out[]` for none.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Input => "In",
            Space::Output => "Out",
            Space::Scratch => "Scratch",
        };
        match self.len {
            0 => write!(f, "{space}[]"),
            1 => write!(f, "{space}[{}]", self.start),
            _ => write!(f, "{space}[{}..{}]", self.start, self.end()),
        }
    }
}

/// As in a plan, except that `Reduce` tells where its operands are and not what they are.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Send { peer, src, settled } => {
                write!(f, "Send {peer} {src}{}", mark(*settled, " (settled)"))
            }
            Step::Recv { peer, dst, early } => {
                write!(f, "Recv {peer} {dst}{}", mark(*early, " (early)"))
            }
            Step::RecvReduce { peer, src, dst } => write!(f, "RecvReduce {peer} {src} -> {dst}"),
            Step::Copy { src, dst } => write!(f, "Copy {src} -> {dst}"),
            Step::Reduce { first, count, dst } => {
                write!(f, "Reduce sources {first}..{} -> {dst}", first + count)
            }
            Step::Flush { span } => write!(f, "Flush {span}"),
        }
    }
}

/// `Recv 3`: the next message of rank 3.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Own(span) => write!(f, "{span}"),
            Source::Arrival { peer } => write!(f, "Recv {peer}"),
        }
    }
}

/// `Send 3`: the next message to rank 3. A backing span is in parentheses.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Own(span) => write!(f, "{span}"),
            Destination::Backing(span) => write!(f, "({span})"),
            Destination::Send { peer, settled } => {
                write!(f, "Send {peer}{}", mark(*settled, " (settled)"))
            }
        }
    }
}

impl Plan {
    /// A step as text, with the operands of a `Reduce`: `Reduce In[0], Scratch[1] -> Out[0]`.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn describe(&self, step: usize) -> String {
        match self.steps[step] {
            Step::Reduce { first, count, dst } => {
                let operands = operands(&self.sources, first, count);
                format!("Reduce {} -> {dst}", list(operands))
            }
            other => other.to_string(),
        }
    }
}

impl Program {
    /// An action as text: `Move In[2], Recv 0 -> Out[2], Send 1`.
    ///
    /// # Panics
    /// If there is no such action.
    pub fn describe(&self, action: usize) -> String {
        match self.actions[action] {
            Action::Move {
                first_source,
                sources,
                first_destination,
                destinations,
                guarded,
                early,
                completes,
                ..
            } => format!(
                "Move {} -> {}{}{}{}",
                list(operands(&self.sources, first_source, sources)),
                list(operands(&self.destinations, first_destination, destinations)),
                mark(guarded, " (guarded)"),
                mark(early, " (early)"),
                mark(completes, " (completes)"),
            ),
            Action::Flush { span } => format!("Flush {span}"),
        }
    }
}

/// One step a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.steps.len()).try_for_each(|step| writeln!(f, "{}", self.describe(step)))
    }
}

/// One action a line.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.actions.len()).try_for_each(|action| writeln!(f, "{}", self.describe(action)))
    }
}

fn mark(set: bool, text: &str) -> &str {
    if set { text } else { "" }
}

/// What is there of `count` items from `first`: a plan that is being checked may name too many.
fn operands<T>(all: &[T], first: u32, count: u32) -> &[T] {
    let rest = all.get(first as usize..).unwrap_or_default();
    &rest[..rest.len().min(count as usize)]
}

fn list(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::{Algorithm, Collective, Plan, Span, Step, lower};

    fn all_reduce(algorithm: Algorithm, rank: u32, ranks: u32) -> Plan {
        algorithm.plan(Collective::AllReduce, rank, ranks)
    }

    fn lines(text: impl ToString) -> Vec<String> {
        text.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_ring_is_written_as_in_the_design() {
        let plan = all_reduce(Algorithm::Ring, 0, 3);
        let steps = [
            "Send 1 In[0] (settled)",
            "RecvReduce 2 In[2] -> Out[2]",
            "Send 1 Out[2] (settled)",
            "RecvReduce 2 In[1] -> Out[1]",
            "Send 1 Out[1]",
            "Recv 2 Out[0] (early)",
            "Send 1 Out[0]",
            "Recv 2 Out[2] (early)",
        ];
        assert_eq!(lines(&plan), steps);
        let actions = [
            "Move In[0] -> Send 1 (settled)",
            "Move In[2], Recv 2 -> (Out[2]), Send 1 (settled)",
            "Move In[1], Recv 2 -> Out[1], Send 1 (completes)",
            "Move Recv 2 -> Out[0], Send 1 (early)",
            "Move Recv 2 -> Out[2] (early)",
        ];
        assert_eq!(lines(lower(&plan)), actions);
    }

    #[test]
    fn a_two_shot_reduces_arrivals_without_scratch() {
        let plan = all_reduce(Algorithm::TwoShot, 1, 3);
        let program = lower(&plan);
        let actions = [
            "Move In[2] -> Send 2 (settled)",
            "Move In[0] -> Send 0 (settled)",
            "Move Recv 0, In[1], Recv 2 -> Out[1], Send 2, Send 0 (completes)",
            "Move Recv 0 -> Out[0] (early)",
            "Move Recv 2 -> Out[2] (early)",
        ];
        assert_eq!(lines(&program), actions);
        assert!(program.scratch.is_empty());
    }

    #[test]
    fn a_one_shot_is_guarded_instead_of_flushed() {
        let plan = all_reduce(Algorithm::OneShot, 1, 3);
        assert_eq!(plan.describe(5), "Reduce Scratch[0], In[0], Scratch[2] -> Out[0]");
        let actions = [
            "Move In[0] -> Send 2",
            "Move In[0] -> Send 0",
            "Move Recv 0, In[0], Recv 2 -> Out[0] (guarded) (completes)",
        ];
        assert_eq!(lines(lower(&plan)), actions);
    }

    #[test]
    fn doubling_forwards_the_sum_to_the_next_partner() {
        let actions = [
            "Move In[0], Recv 4 -> Out[0], Send 1",
            "Move Out[0], Recv 1 -> Out[0], Send 2 (guarded)",
            "Move Out[0], Recv 2 -> Out[0], Send 4 (guarded) (completes)",
        ];
        assert_eq!(lines(lower(&all_reduce(Algorithm::Doubling, 0, 5))), actions);
    }

    #[test]
    fn an_inner_rank_of_a_tree_serves_the_other_tree_first_and_last() {
        let actions = [
            "Move In[1] -> Send 2 (settled)",
            "Move In[0], Recv 0 -> Out[0]",
            "Move Out[0], Recv 2 -> (Out[0]), Send 3 (settled)",
            "Move Recv 3 -> Out[0], Send 0, Send 2 (early)",
            "Move Recv 2 -> Out[1] (early)",
        ];
        assert_eq!(lines(lower(&all_reduce(Algorithm::DoubleTree, 1, 4))), actions);
    }

    #[test]
    fn a_broadcast_forwards_what_arrives() {
        let plan = |rank| Algorithm::Tree.plan(Collective::Broadcast { root: 3 }, rank, 5);
        let root = ["Move In[0] -> Send 2", "Move In[0] -> Send 0", "Move In[0] -> Send 4"];
        assert_eq!(lines(lower(&plan(3)))[..3], root);
        assert_eq!(lines(lower(&plan(3)))[3..], ["Move In[0] -> Out[0]"]);
        assert_eq!(lines(lower(&plan(0))), ["Move Recv 3 -> Out[0], Send 1 (early)"]);
        assert_eq!(lines(lower(&plan(1))), ["Move Recv 0 -> Out[0] (early)"]);
    }

    #[test]
    fn a_second_message_to_one_peer_comes_after_the_first() {
        let [first, second] = [0, 1].map(|chunk| Span::output(chunk, 1));
        let plan = Plan {
            rank: 0,
            ranks: 3,
            chunks: 2,
            scratch: vec![],
            steps: vec![
                Step::recv(2, first),
                Step::send(1, first),
                Step::send(1, first),
                Step::recv(2, second),
                Step::send(1, second),
            ],
            sources: vec![],
        };
        let actions = [
            "Move Recv 2 -> Out[0], Send 1",
            "Move Out[0] -> Send 1",
            "Move Recv 2 -> Out[1], Send 1",
        ];
        assert_eq!(lines(lower(&plan)), actions);
    }

    #[test]
    fn a_barrier_sends_empty_messages() {
        let plan = Algorithm::Dissemination.plan(Collective::Barrier, 0, 3);
        let actions =
            ["Move Out[] -> Send 1", "Move Recv 2 -> Out[], Send 2", "Move Recv 1 -> Out[]"];
        assert_eq!(lines(lower(&plan)), actions);
    }
}
