//! Other people's servers, as child processes.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Where a program is, if it is on `PATH` (or where Debian puts servers).
#[must_use]
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A child that ends with the value.
struct Process(Child);

impl Process {
    /// Starts it and waits until it accepts connections.
    fn start(command: &mut Command, port: u16) -> io::Result<Self> {
        let mut process = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = process.0.try_wait()? {
                return Err(io::Error::other(format!("{command:?} ended with {status}")));
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(io::Error::other(format!("{command:?} does not listen")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `moto_server` (`PyPI`: `moto[server]`): an S3 implementation that shares nothing with ours.
pub struct Moto {
    port: u16,
    _process: Process,
}

impl Moto {
    /// Starts it on a free port.
    pub fn start() -> io::Result<Self> {
        let program = which("moto_server").ok_or_else(|| io::Error::other("moto_server is not installed"))?;
        let port = free_port()?;
        let process = Process::start(Command::new(program).args(["-H", "127.0.0.1", "-p", &port.to_string()]), port)?;
        Ok(Self { port, _process: process })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }
}

/// nginx over a directory, with prepared listings: the fastest origin there is on one machine.
pub struct Nginx {
    scheme: &'static str,
    port: u16,
    root: PathBuf,
    // Dropped before the directory, or nginx would find it gone.
    process: Process,
    _state: tempfile::TempDir,
}

impl Nginx {
    /// Serves `root/bucket/key` with ranges at `/bucket/key`, and `root/bucket.xml` as the answer
    /// to any listing of `bucket`.
    pub fn start(root: &Path) -> io::Result<Self> {
        Self::listen(root, "http", "")
    }

    /// The same over TLS.
    pub fn start_tls(root: &Path, certificate: &Path, key: &Path) -> io::Result<Self> {
        let (certificate, key) = (certificate.display(), key.display());
        Self::listen(root, "https", &format!("ssl_certificate {certificate}; ssl_certificate_key {key};"))
    }

    fn listen(root: &Path, scheme: &'static str, tls: &str) -> io::Result<Self> {
        let ssl = if tls.is_empty() { "" } else { " ssl" };
        let program = which("nginx").ok_or_else(|| io::Error::other("nginx is not installed"))?;
        let state = tempfile::Builder::new().prefix("larder-nginx-").tempdir()?;
        let port = free_port()?;
        let (root_shown, state_shown) = (root.display(), state.path().display());
        let config = format!(
            "daemon off; master_process off; pid {state_shown}/pid; error_log {state_shown}/error.log crit;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; etag on;\n\
             client_body_temp_path {state_shown}/b; proxy_temp_path {state_shown}/p; fastcgi_temp_path {state_shown}/f;\n\
             uwsgi_temp_path {state_shown}/u; scgi_temp_path {state_shown}/s;\n\
             server {{ listen 127.0.0.1:{port}{ssl}; {tls} root {root_shown}; default_type application/octet-stream;\n\
             location ~ ^/([^/]+)/?$ {{ default_type application/xml; try_files /$1.xml =404; }}\n\
             location / {{ }} }} }}\n"
        );
        let file = state.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(state.path()).arg("-c").arg(&file).arg("-e").arg(state.path().join("error.log"));
        let process = Process::start(&mut command, port)?;
        Ok(Self { scheme, port, root: root.to_owned(), process, _state: state })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The process, to measure it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Writes the listing of one bucket from what lies in its directory, with the ETags that
    /// nginx will send: time and size in hexadecimal.
    pub fn write_listing(&self, bucket: &str) -> io::Result<()> {
        let directory = self.root.join(bucket);
        let mut files = Vec::new();
        walk(&directory, &mut files)?;
        files.sort();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{bucket}</Name><KeyCount>{}</KeyCount><IsTruncated>false</IsTruncated>",
            files.len()
        );
        for file in files {
            let metadata = std::fs::metadata(&file)?;
            let modified = metadata.modified()?.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
            let key = file.strip_prefix(&directory).unwrap_or(&file).display();
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-02T10:00:00.000Z</LastModified><ETag>&quot;{:x}-{:x}&quot;</ETag><Size>{}</Size></Contents>",
                modified.as_secs(),
                metadata.len(),
                metadata.len()
            ));
        }
        xml.push_str("</ListBucketResult>");
        std::fs::write(self.root.join(format!("{bucket}.xml")), xml)
    }
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
