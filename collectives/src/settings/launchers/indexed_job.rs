//! An indexed job of Kubernetes: each pod has its number, and a name below that of the job's headless
//! service (`subdomain` of the pods). How many pods there are is told by `RINGTREE_RANKS`.

use std::fs;

use super::{DEFAULT_PORT, Place, Source, Told, at_port, set_rendezvous};
use crate::Error;
use crate::settings::variables::{Variables, settings};

pub(super) fn place(env: &Variables<'_>) -> Result<Option<Place>, Error> {
    let Some(rank) = env.told_if_set("JOB_COMPLETION_INDEX")? else { return Ok(None) };
    if env.get("RINGTREE_RANKS").is_none() {
        return Err(settings(
            "JOB_COMPLETION_INDEX numbers this pod of an indexed job, and nothing says how many \
             there are: set RINGTREE_RANKS to the job's completions",
        ));
    }
    let rendezvous = match set_rendezvous(env) {
        Some(set) => set,
        None => first_pod(env, &rank)?,
    };
    Ok(Some(Place {
        source: Source::IndexedJob,
        rank,
        ranks: env.told("RINGTREE_RANKS")?,
        local_rank: None,
        local_ranks: None,
        rendezvous,
        job: None,
    }))
}

/// The pod with number 0 is called as this one is, apart from the number.
fn first_pod(env: &Variables<'_>, rank: &Told<u32>) -> Result<Told<String>, Error> {
    let own = env.required("HOSTNAME", "the name of this pod")?;
    let known = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let first = full_name(&own.value, &known).and_then(|name| zeroth(&name, rank.value));
    let unknown = || {
        settings(format!(
            "HOSTNAME={} does not tell the name of the pod with number 0: give the pods the \
             `subdomain` of a headless service, or set RINGTREE_RENDEZVOUS, such as \
             JOB-0.SERVICE:{DEFAULT_PORT}",
            own.value
        ))
    };
    let first = first.ok_or_else(unknown)?;
    at_port(&Told { value: first, variable: own.variable }, DEFAULT_PORT)
}

/// `job-3` with its domain, as a line of /etc/hosts has it: `10.0.0.7 job-3.service.space.svc job-3`.
fn full_name(name: &str, hosts: &str) -> Option<String> {
    if name.contains('.') {
        return Some(name.to_string());
    }
    let names = hosts.lines().flat_map(|line| line.split_whitespace().skip(1));
    let is_ours = |long: &&str| long.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    names.into_iter().find(is_ours).map(str::to_string)
}

/// `job-0.service` for `job-3.service`, where 3 is `rank`.
fn zeroth(name: &str, rank: u32) -> Option<String> {
    let (pod, domain) = name.split_once('.')?;
    let job = pod.strip_suffix(&format!("-{rank}"))?;
    Some(format!("{job}-0.{domain}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pod_is_a_sibling() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7\tsum-12.ranks.lab.svc.cluster.local\tsum-12\n";
        let long = full_name("sum-12", hosts).unwrap();
        assert_eq!(zeroth(&long, 12).unwrap(), "sum-0.ranks.lab.svc.cluster.local");
        assert_eq!(full_name("sum-1", hosts), None);
        assert_eq!(full_name("sum-1.ranks", hosts).unwrap(), "sum-1.ranks");
        assert_eq!(zeroth("sum-1.ranks", 2), None);
        assert_eq!(zeroth("sum-1", 1), None);
    }
}
