//! Slurm's short forms: `n[1-3,10],m[007-008]` for hosts, `2(x3),1` for counts.

/// Hosts of one list at most.
const HOSTS_LIMIT: usize = 1 << 16;

/// The hosts that a list names, in its order; at least one. Else what is wrong with it.
pub(super) fn hosts(list: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for pattern in split(list)? {
        all.extend(expand(pattern)?);
        if all.len() > HOSTS_LIMIT {
            return Err(format!("names more than {HOSTS_LIMIT} hosts"));
        }
    }
    Ok(all)
}

/// Numbers that may be repeated: 2, 2, 2 and 1 for `2(x3),1`. None may be more than `most`, nor may there
/// be more of them.
pub(super) fn counts(text: &str, most: u32) -> Result<Vec<u32>, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let malformed = || format!("has \"{part}\", which is no count such as 2 or 2(x3)");
        let (count, times) = match part.trim().split_once("(x") {
            None => (part.trim(), "1"),
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(malformed)?),
        };
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=most).contains(n));
        let (count, times) = number(count).zip(number(times)).ok_or_else(malformed)?;
        all.extend((0..times).map(|_| count));
        if all.len() > most as usize {
            return Err(format!("has more than {most} nodes"));
        }
    }
    Ok(all)
}

/// The parts between the commas that are outside brackets.
fn split(list: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut is_inside) = (0, false);
    for (at, c) in list.char_indices() {
        match (c, is_inside) {
            ('[', false) => is_inside = true,
            (']', true) => is_inside = false,
            ('[' | ']', _) => return Err("has brackets that do not match".into()),
            (',', false) => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if is_inside {
        return Err("has brackets that do not match".into());
    }
    parts.push(&list[start..]);
    match parts.iter().any(|part| part.trim().is_empty()) {
        true => Err("has an empty name".into()),
        false => Ok(parts),
    }
}

/// All names of one pattern: with several ranges, the last one runs fastest.
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = pattern.trim();
    while let Some((text, behind)) = rest.split_once('[') {
        // The brackets match.
        let (ranges, behind) = behind.split_once(']').unwrap_or((behind, ""));
        let numbers = numbers(ranges)?;
        if names.len() * numbers.len() > HOSTS_LIMIT {
            return Err(format!("names more than {HOSTS_LIMIT} hosts"));
        }
        names = names
            .iter()
            .flat_map(|name| numbers.iter().map(move |number| format!("{name}{text}{number}")))
            .collect();
        rest = behind;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// The numbers of `1-3,10`, with as many zeros in front as are written.
fn numbers(ranges: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<usize>().ok().filter(|_| is_plain)
        };
        let malformed = || format!("has \"{range}\" in brackets, which is no range of numbers");
        let (from, to) = number(first).zip(number(last)).ok_or_else(malformed)?;
        if from > to || to - from >= HOSTS_LIMIT {
            return Err(malformed());
        }
        let width = first.len();
        all.extend((from..=to).map(|n| format!("{n:0width$}")));
        if all.len() > HOSTS_LIMIT {
            return Err(format!("names more than {HOSTS_LIMIT} hosts"));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_slurm_writes_them() {
        for (list, expected) in [
            ("n1", "n1"),
            ("n[1-4]", "n1 n2 n3 n4"),
            ("n[1-3,10],m[007-008]", "n1 n2 n3 n10 m007 m008"),
            ("x[008-011]", "x008 x009 x010 x011"),
            ("rack[1-2]n[01-02]", "rack1n01 rack1n02 rack2n01 rack2n02"),
            ("n[1-2]-ib[0-1]", "n1-ib0 n1-ib1 n2-ib0 n2-ib1"),
            ("n[9-10]", "n9 n10"),
            ("a,b[3],c-d", "a b3 c-d"),
        ] {
            assert_eq!(hosts(list).unwrap().join(" "), expected, "{list}");
        }
    }

    #[test]
    fn what_no_list_of_hosts_is() {
        for (list, says) in [
            ("n[1-a]", "\"1-a\" in brackets"),
            ("n[a-c]", "no range"),
            ("n[3-1]", "no range"),
            ("n[]", "no range"),
            ("n[-3]", "no range"),
            ("n[+1-3]", "no range"),
            ("n[1-3", "brackets"),
            ("n1-3]", "brackets"),
            ("n[[1-3]]", "brackets"),
            ("n1,,n2", "empty name"),
            ("", "empty name"),
            ("n[0-999999999]", "no range"),
            ("n[0-999]x[0-999]", "more than"),
            ("n[1-99999999999999999999999]", "no range"),
        ] {
            let error = hosts(list).unwrap_err();
            assert!(error.contains(says), "{list}: {error}");
        }
    }

    #[test]
    fn counts_as_slurm_writes_them() {
        assert_eq!(counts("2(x3)", 6).unwrap(), [2, 2, 2]);
        assert_eq!(counts("3,1", 4).unwrap(), [3, 1]);
        assert_eq!(counts("4,2(x2),1", 9).unwrap(), [4, 2, 2, 1]);
        for wrong in ["", "x", "2(3)", "2(x", "2(x0)", "0", "2(x4000000000)", "1,,1", "-1"] {
            assert!(counts(wrong, 100).is_err(), "{wrong}");
        }
    }
}
