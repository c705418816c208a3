//! The URL of a server of buckets, in the one spelling by which names tell servers apart.

use std::borrow::Cow;

use url::Url;

/// Amazon's own, whatever the region: a bucket's name means one bucket in all of them.
pub const AMAZON: &str = "https://s3.amazonaws.com";
/// Google's own.
pub const GOOGLE: &str = "https://storage.googleapis.com";
/// Partitions of AWS that share no bucket with the others, each by the first of its regions.
const AMAZON_GOV: &str = "https://s3.us-gov-west-1.amazonaws.com";
const AMAZON_CHINA: &str = "https://s3.cn-north-1.amazonaws.com.cn";

/// The one spelling of an endpoint: without a default port, without a `/` at its end, and for Amazon
/// without a region. A user name, a password, a query or a fragment is never in it.
#[must_use]
pub fn canonical(endpoint: &str) -> String {
    let url = Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(mut url) = url else { return without_secrets(endpoint) };
    // These have a host, and what has one takes both.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    if let Some(amazon) = amazon(&url) {
        return amazon.to_owned();
    }
    url.as_str().trim_end_matches('/').to_owned()
}

/// The same for the endpoint in an origin such as `s3 http://minio:9000`. Others have none.
#[must_use]
pub fn canonical_origin(origin: &str) -> Cow<'_, str> {
    match origin.split_once(' ') {
        Some((kind @ ("s3" | "gs"), endpoint)) => Cow::Owned(format!("{kind} {}", canonical(endpoint))),
        _ => Cow::Borrowed(origin),
    }
}

/// The endpoint in an origin, in its one spelling.
#[must_use]
pub fn endpoint_of(origin: &str) -> Option<String> {
    let (kind, endpoint) = origin.split_once(' ')?;
    matches!(kind, "s3" | "gs").then(|| canonical(endpoint))
}

/// The partition of AWS that this is an endpoint of, if it is one that has all of its buckets.
fn amazon(url: &Url) -> Option<&'static str> {
    // Over plain HTTP anybody on the way may answer for it.
    if url.scheme() != "https" || url.port().is_some() || url.path() != "/" {
        return None;
    }
    let host = url.host_str()?;
    let (labels, is_china) = match host.strip_suffix(".amazonaws.com.cn") {
        Some(labels) => (labels, true),
        None => (host.strip_suffix(".amazonaws.com")?, false),
    };
    let labels: Vec<&str> = labels.split('.').collect();
    let region = match labels[..] {
        ["s3" | "s3-accelerate" | "s3-external-1"] | ["s3-accelerate", "dualstack"] => "",
        ["s3" | "s3-fips", region] | ["s3" | "s3-fips", "dualstack", region] => region,
        // Through an endpoint in the user's own network.
        [.., endpoint, "s3", region, "vpce"] if endpoint.starts_with("vpce-") => region,
        // As it was written before 2019.
        [old] => old.strip_prefix("s3-fips-").or_else(|| old.strip_prefix("s3-"))?,
        _ => return None,
    };
    // Others than regions are other services, such as `s3-control` and `s3-outposts`.
    let is_region =
        region.is_empty() || region.rsplit_once('-').is_some_and(|(_, number)| number.parse::<u8>().is_ok());
    is_region.then_some(match region {
        _ if is_china => AMAZON_CHINA,
        region if region.starts_with("us-gov-") => AMAZON_GOV,
        _ => AMAZON,
    })
}

/// What is no URL is used for nothing, and shown without what may be a secret.
fn without_secrets(text: &str) -> String {
    let text = text.rsplit('@').next().unwrap_or_default();
    text.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_has_one_spelling() {
        for (written, meant) in [
            ("http://minio:9000", "http://minio:9000"),
            ("HTTP://MinIO:9000//", "http://minio:9000"),
            ("http://minio:80/", "http://minio"),
            ("https://minio:443", "https://minio"),
            ("https://minio:80", "https://minio:80"),
            ("https://h/base/", "https://h/base"),
            ("http://[::1]:9000", "http://[::1]:9000"),
        ] {
            assert_eq!(canonical(written), meant, "{written}");
            assert_eq!(canonical(meant), meant);
        }
        assert_ne!(canonical("http://minio"), canonical("https://minio"));
        assert_eq!(canonical_origin("s3 http://minio:80/"), "s3 http://minio");
        assert_eq!(canonical_origin("gs http://minio:80/"), "gs http://minio");
        for other in ["file", "https HOST:443", "", "s3"] {
            assert_eq!(canonical_origin(other), other);
        }
    }

    #[test]
    fn amazon_is_one_server_in_all_regions_of_a_partition() {
        for host in [
            "s3",
            "s3.us-east-1",
            "s3.eu-central-1",
            "s3-us-west-2",
            "s3.dualstack.eu-west-1",
            "s3-fips.us-east-2",
            "s3-accelerate",
            "bucket.vpce-0a1b-2c3d.s3.us-east-1.vpce",
        ] {
            assert_eq!(canonical(&format!("https://{host}.amazonaws.com/")), AMAZON, "{host}");
        }
        assert_eq!(canonical("https://s3.us-gov-east-1.amazonaws.com"), AMAZON_GOV);
        assert_eq!(canonical("https://s3.cn-northwest-1.amazonaws.com.cn"), AMAZON_CHINA);
        for own in [AMAZON, AMAZON_GOV, AMAZON_CHINA, GOOGLE] {
            assert_eq!(canonical(own), own);
        }
        for other in [
            "http://s3.amazonaws.com",
            "https://s3.amazonaws.com:8443",
            "https://s3.amazonaws.com/base",
            "https://s3.us-east-1.amazonaws.com.example",
            "https://1.s3-outposts.us-east-1.amazonaws.com",
            "https://s3-control.amazonaws.com",
            "https://x.s3-object-lambda.us-east-1.amazonaws.com",
        ] {
            assert_eq!(canonical(other), other);
        }
    }

    #[test]
    fn secrets_are_in_no_spelling() {
        for endpoint in ["http://us3r:p4ss@h:9000/?k=p4ss#p4ss", "us3r:p4ss@h:9000?k=p4ss", "s3cr3t us3r:p4ss@h:9000"] {
            let spelled = canonical(endpoint);
            assert!(spelled.ends_with("h:9000") && !spelled.contains("us3r") && !spelled.contains("p4ss"), "{spelled}");
        }
    }
}
