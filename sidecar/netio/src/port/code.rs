//! The program's own code, as far as it is mapped.
//!
//! A page of the program's file that was ever run stays mapped, and the kernel maps its neighbours with it. So after a
//! start, which parses arguments, reads configuration and sets up the host, nearly all of the code counts as memory of this
//! process, of which a running node uses a third.

use std::{ffi::c_void, ptr};

/// Unmaps the code of the program and its libraries. What is run again is mapped again from the page cache, at the cost of
/// a minor fault.
pub fn give_back() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, len) in unchanged(&maps) {
        let start: *mut c_void = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the mapping is of a file, not writable, and no page of it differs from the file: the kernel maps the same
        // bytes again when they are touched.
        let _ = unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
    }
}

/// Start and length of the mappings of code of which no page differs from its file; `maps` as in proc(5), smaps.
fn unchanged(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut code = None;
    maps.lines().filter_map(move |line| {
        if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            return code.take().filter(|_| anonymous.trim() == "0 kB");
        }
        let mut fields = line.split_ascii_whitespace();
        if let (Some(range), Some("r-xp")) = (fields.next(), fields.next()) {
            let is_file = fields.nth(2).is_some_and(|inode| inode != "0");
            code = range.split_once('-').filter(|_| is_file).and_then(|(start, end)| {
                let start = usize::from_str_radix(start, 16).ok()?;
                Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
            });
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_that_is_as_in_its_file_is_given_back() {
        let maps = "\
1000-3000 r--p 00000000 fe:00 77 /bin/easynet
Anonymous:             0 kB
3000-7000 r-xp 00002000 fe:00 77 /bin/easynet
Size:                 16 kB
Anonymous:             0 kB
7000-8000 rw-p 00006000 fe:00 77 /bin/easynet
Anonymous:             4 kB
9000-a000 r-xp 00000000 fe:00 78 /lib/patched.so
Anonymous:             4 kB
b000-c000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
";

        assert_eq!(unchanged(maps).collect::<Vec<_>>(), [(0x3000, 0x4000)]);
    }

    #[test]
    fn the_program_goes_on_with_less_memory_mapped() {
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = mapped();

        give_back();

        let after = mapped();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
