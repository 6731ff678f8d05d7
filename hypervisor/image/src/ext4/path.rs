//! Paths: from a name to an inode, through symbolic links.

use std::collections::VecDeque;

use super::inode::{Inode, ROOT};
use super::map::File;
use super::{DirEntry, Ext4, Ext4Error, FileType, LINKS_MAX, PATH_BYTES_MAX, dir};

/// Steps that a path and its links take together.
const STEPS_MAX: u32 = 256;

impl Ext4<'_> {
    /// Opens a file of at most `size_max` bytes. Links are followed; absolute ones lead from this file system's root.
    ///
    /// # Errors
    ///
    /// If there is no such file, it is no file, it is larger, or it can't be read.
    pub fn open_file(&self, path: &str, size_max: u64) -> Result<File<'_>, Ext4Error> {
        let inode = self.expect(path, FileType::Regular)?;
        if inode.size > size_max {
            return Err(Ext4Error::TooLarge { path: path.to_owned(), size: inode.size, size_max });
        }
        File::open(self, &inode)
    }

    /// All of a small file.
    ///
    /// # Errors
    ///
    /// As of [`open_file`](Self::open_file).
    pub fn read_file(&self, path: &str, size_max: u64) -> Result<Vec<u8>, Ext4Error> {
        let file = self.open_file(path, size_max)?;
        let mut bytes = vec![0; file.size() as usize];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The names in a directory, without "." and "..", sorted by their bytes.
    ///
    /// # Errors
    ///
    /// If it is no directory, or can't be read.
    pub fn read_dir(&self, path: &str) -> Result<Vec<DirEntry>, Ext4Error> {
        let inode = self.expect(path, FileType::Directory)?;
        dir::list(self, &inode)
    }

    /// What is at a path, and its bytes, with links followed.
    ///
    /// # Errors
    ///
    /// If there is nothing, or it can't be read.
    pub fn stat(&self, path: &str) -> Result<(FileType, u64), Ext4Error> {
        let inode = self.resolve(path)?;
        Ok((inode.kind, inode.size))
    }

    fn expect(&self, path: &str, expected: FileType) -> Result<Inode, Ext4Error> {
        let inode = self.resolve(path)?;
        if inode.kind != expected {
            return Err(Ext4Error::WrongType { path: path.to_owned(), found: inode.kind, expected });
        }
        if inode.is_encrypted() {
            return Err(Ext4Error::Encrypted { path: path.to_owned() });
        }
        Ok(inode)
    }

    fn resolve(&self, path: &str) -> Result<Inode, Ext4Error> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Ext4Error::PathTooLong);
        }
        let mut open: VecDeque<Vec<u8>> = split(path.as_bytes()).collect();
        let mut above = vec![Inode::read(self, ROOT)?];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = open.pop_front() {
            steps += 1;
            let Some(here) = above.last().filter(|_| steps <= STEPS_MAX) else {
                return Err(Ext4Error::TooManyLinks { path: path.to_owned() });
            };
            if here.kind != FileType::Directory {
                let expected = FileType::Directory;
                return Err(Ext4Error::WrongType { path: path.to_owned(), found: here.kind, expected });
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ if here.is_encrypted() => return Err(Ext4Error::Encrypted { path: path.to_owned() }),
                _ => {}
            }
            let Some(number) = dir::look_up(self, here, &name)? else {
                return Err(Ext4Error::NotFound { path: path.to_owned() });
            };
            let inode = Inode::read(self, number)?;
            if inode.kind != FileType::Symlink {
                above.push(inode);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Ext4Error::TooManyLinks { path: path.to_owned() });
            }
            let target = self.target(path, &inode)?;
            if target.starts_with(b"/") {
                above.truncate(1);
            }
            for name in split(&target).collect::<Vec<_>>().into_iter().rev() {
                open.push_front(name);
            }
        }
        above.pop().ok_or_else(|| Ext4Error::NotFound { path: path.to_owned() })
    }

    fn target(&self, path: &str, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        if inode.is_encrypted() {
            return Err(Ext4Error::Encrypted { path: path.to_owned() });
        }
        if inode.size > PATH_BYTES_MAX as u64 {
            return Err(Ext4Error::PathTooLong);
        }
        let len = inode.size as usize;
        if inode.is_fast_symlink(self) {
            return Ok(inode.block()[..len].to_vec());
        }
        let mut target = vec![0; len];
        File::open(self, inode)?.read_at(0, &mut target)?;
        Ok(target)
    }
}

fn split(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}
