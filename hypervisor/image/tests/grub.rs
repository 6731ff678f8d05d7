//! GRUB's script language, over a disk that is a table.

use std::collections::BTreeMap;

use boot_image::grub::{Device, Files, Found, Item, Menu, interpret, parse};
use proptest::prelude::*;

/// Files by `device:path`.
#[derive(Default)]
struct Disk(BTreeMap<String, String>);

impl Disk {
    fn with(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }
}

impl Files for Disk {
    fn read(&self, device: &str, path: &str, size_max: u64) -> Option<Vec<u8>> {
        let text = self.0.get(&format!("{device}:{path}"))?;
        (text.len() as u64 <= size_max).then(|| text.clone().into_bytes())
    }

    fn look(&self, device: &str, path: &str) -> Found {
        match self.0.get(&format!("{device}:{path}")) {
            Some(text) => Found::File(text.len() as u64),
            None if self.list(device, path).is_empty() => Found::Nothing,
            None => Found::Folder,
        }
    }

    fn list(&self, device: &str, path: &str) -> Vec<String> {
        let prefix = format!("{device}:{}/", path.trim_end_matches('/'));
        self.0.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn devices(&self) -> Vec<Device> {
        let device = |name: &str, uuid: &str, label: &str| Device {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            label: label.to_owned(),
        };
        vec![device("hd0,gpt1", "11111111-aaaa", "root"), device("hd0,gpt2", "22222222-bbbb", "boot")]
    }
}

fn menu(script: &str, files: &[(&str, &str)]) -> Menu {
    let script = parse(script).unwrap_or_else(|error| panic!("{error}"));
    interpret(&script, &Disk::with(files), "hd0,gpt1", "/boot/grub")
}

/// What would be started: kernel, initrds, command line.
fn started(menu: &Menu) -> (String, Vec<String>, String) {
    let Some(Item::Linux(entry)) = menu.at(&menu.default) else { panic!("{menu:?}") };
    let place = |place: &boot_image::grub::Place| format!("{}:{}", place.device, place.path);
    (place(&entry.kernel), entry.initrds.iter().map(place).collect(), entry.command_line.clone())
}

/// As `grub-mkconfig` of Debian 12 writes it, shortened where it repeats itself.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
insmod part_gpt
insmod ext2
set root='hd0,gpt1'
    font="/usr/share/grub/unicode.pf2"
fi
if loadfont $font ; then
  set gfxmode=auto
  load_video
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  else
    set timeout=5
  fi
fi
function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux-simple-11111111-aaaa' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	set root='hd1,gpt9'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 --hint-baremetal=ahci0,gpt1  11111111-AAAA
	else
	  search --no-floppy --fs-uuid --set=root 11111111-aaaa
	fi
	echo	'Loading Linux 6.1.0-37-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-37-cloud-amd64 root=UUID=11111111-aaaa ro  quiet console=ttyS0,115200
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-37-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-11111111-aaaa' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-37-cloud-amd64 (recovery mode)' $menuentry_id_option 'gnulinux-6.1.0-37-cloud-amd64-recovery-11111111-aaaa' {
		search --no-floppy --fs-uuid --set=root 22222222-bbbb
		linux	/vmlinuz-6.1.0-37-cloud-amd64 root=UUID=11111111-aaaa ro single dyndbg="file x +p" a\$b
		initrd	/intel.img ($root)/initrd.img-6.1.0-37-cloud-amd64
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

#[test]
fn debians_menu_is_understood() {
    let all = menu(DEBIAN, &[]);
    assert_eq!(
        started(&all),
        (
            "hd0,gpt1:/boot/vmlinuz-6.1.0-37-cloud-amd64".to_owned(),
            vec!["hd0,gpt1:/boot/initrd.img-6.1.0-37-cloud-amd64".to_owned()],
            "BOOT_IMAGE=/boot/vmlinuz-6.1.0-37-cloud-amd64 root=UUID=11111111-aaaa ro quiet console=ttyS0,115200"
                .to_owned()
        )
    );
    let entries: Vec<_> =
        all.entries().into_iter().map(|(place, entry)| (place, entry.id.as_str())).collect();
    assert_eq!(
        entries,
        [
            (vec![0], "gnulinux-simple-11111111-aaaa"),
            (vec![1, 0], "gnulinux-6.1.0-37-cloud-amd64-recovery-11111111-aaaa")
        ]
    );
    assert_eq!(all.items[2].title(), "UEFI Firmware Settings");
    assert!(all.notes.is_empty(), "{:?}", all.notes);
}

#[test]
fn the_saved_entry_is_the_default() {
    let saved = "# GRUB Environment Block\nsaved_entry=gnulinux-advanced-11111111-aaaa>gnulinux-6.1.0-37-cloud-amd64-recovery-11111111-aaaa\n####";
    let all = menu(DEBIAN, &[("hd0,gpt1:/boot/grub/grubenv", saved)]);
    let (kernel, initrds, line) = started(&all);
    assert_eq!(kernel, "hd0,gpt2:/vmlinuz-6.1.0-37-cloud-amd64");
    assert_eq!(initrds, ["hd0,gpt2:/intel.img", "hd0,gpt2:/initrd.img-6.1.0-37-cloud-amd64"]);
    assert!(line.ends_with(r#"ro single "dyndbg=file x +p" a$b"#), "{line}");
    // Once only, and before the saved one.
    let once = saved.replace("####", "next_entry=2\n####");
    let all = menu(DEBIAN, &[("hd0,gpt1:/boot/grub/grubenv", &once)]);
    assert!(matches!(all.at(&all.default), Some(Item::Other { .. })));
}

#[test]
fn a_file_of_the_administrators_own_is_sourced() {
    let custom = "menuentry Mine { linux /mine x=$default; }\nset default=Mine\n";
    let all = menu(DEBIAN, &[("hd0,gpt1:/boot/grub/custom.cfg", custom)]);
    assert_eq!(started(&all).2, "BOOT_IMAGE=/mine x=Mine");
}

#[test]
fn a_script_without_a_menu_starts_by_itself() {
    let script =
        "serial --unit=0\nlinux /vmlinuz root=/dev/vda1 ro\ninitrd /initrd.img\nboot\nlinux /never\n";
    let all = menu(script, &[]);
    assert_eq!(started(&all).0, "hd0,gpt1:/vmlinuz");
    assert_eq!(started(&all).2, "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro");
}

#[test]
fn fedoras_entries_are_found() {
    let script = r#"
set default="${saved_entry}"
load_env -f ${config_directory}/grubenv
search --no-floppy --fs-uuid --set=boot 22222222-bbbb
insmod blscfg
blscfg
set default="${saved_entry}"
"#;
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts ${{tuned_params}}quiet\n"
        )
    };
    let (old, new) = (entry("6.9.1"), entry("6.12.0"));
    let files = [
        ("hd0,gpt1:/boot/grub/grubenv", "# GRUB Environment Block\nkernelopts=root=/dev/vda3 ro \n"),
        ("hd0,gpt2:/loader/entries/m-6.9.1.conf", old.as_str()),
        ("hd0,gpt2:/loader/entries/m-6.12.0.conf", new.as_str()),
        ("hd0,gpt2:/loader/entries/broken.conf", "title x\n"),
    ];
    let all = menu(script, &files);
    let (kernel, initrds, line) = started(&all);
    assert_eq!(kernel, "hd0,gpt2:/vmlinuz-6.12.0");
    assert_eq!(initrds, ["hd0,gpt2:/initramfs-6.12.0.img"]);
    assert_eq!(line, "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.12.0 root=/dev/vda3 ro  quiet");
    assert!(all.notes[0].contains("names no kernel"), "{:?}", all.notes);
    let mut files = files.to_vec();
    files[0].1 = "# GRUB Environment Block\nsaved_entry=m-6.9.1\n";
    assert_eq!(started(&menu(script, &files)).0, "hd0,gpt2:/vmlinuz-6.9.1");
}

#[test]
fn statements_do_what_they_say() {
    for (script, line) in [
        ("for x in a 'b c' $none; do set all=\"$all[$x]\"; done; linux /k $all", "[a][b c]"),
        ("set n=; while [ x$n != xaaa ]; do set n=a$n; done; linux /k $n", "aaa"),
        ("until [ x$n = xaa ]; do n=${n}a; if [ $n = a ]; then continue; fi; break; done; linux /k $n", "aa"),
        ("function f { linux /k $1-$2-$#; return; linux /wrong; }\nf 'a b' c", "a b-c-2"),
        ("if false; then linux /k 1; elif ! false; then linux /k 2; else linux /k 3; fi", "2"),
        ("set a='x  y'; linux /k $a \"$a\" '$a' \\$a", "x y x  y $a $a"),
        ("linux /k $? ; ", "0"),
        ("false; linux /k $?", "1"),
        ("set a=1; unset a; linux /k [$a]", "[]"),
        ("set root=(hd0); a=b; linux /k $a # remark", "b"),
    ] {
        let all = menu(&format!("menuentry x {{\n{script}\n}}"), &[]);
        let found = started(&all).2;
        let found = found.trim_start_matches("BOOT_IMAGE=/k ").replace('"', "");
        assert_eq!(found, line, "{script}");
    }
}

#[test]
fn scripts_without_end_come_to_one() {
    for script in [
        "while true; do set a=$a$a$ax; done",
        "while true; do true; done",
        "until false; do done",
        "function f { f; f; }\nf",
        "function f { g; }\nfunction g { f; f; f; }\nf",
        "set a=xxxxxxxxxxxxxxxx; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28; do set a=$a$a; done",
        "while true; do menuentry x { linux /k; }; done",
        "while true; do test -f /x; done",
        "source /boot/grub/self.cfg",
        "while true; do source /boot/grub/self.cfg; done",
        "submenu x { while true; do submenu y { while true; do menuentry z { while true; do true; done; }; done; }; done; }",
        "while true; do blscfg; done",
        "for x in 1 2 3 4 5 6 7 8 9; do for y in $x $x $x $x $x; do for z in $y $y $y $y $y $y; do set a$x$y$z=$a$x; done; done; done",
    ] {
        let self_sourced = [
            (
                "hd0,gpt1:/boot/grub/self.cfg",
                "set a=b; source /boot/grub/self.cfg; source /boot/grub/self.cfg",
            ),
            ("hd0,gpt1:/loader/entries/a.conf", "linux /k\noptions $a$a$a$a\n"),
        ];
        let all = menu(&format!("{script}\nmenuentry last {{ linux /k; }}"), &self_sourced);
        assert!(all.entries().len() <= 256, "{script}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any text is a script or an error, and any script comes to an end.
    #[test]
    fn any_text_is_taken(words in prop::collection::vec(prop::sample::select(vec![
        "if", "then", "else", "fi", "for", "in", "do", "done", "while", "{", "}", ";", "\n", "[", "]", "!", "=", "-f",
        "set", "a=$a", "linux", "/k", "menuentry", "submenu", "x", "$x", "'q'", "\"$a b\"", "function", "blscfg",
        "search", "--set=root", "--file", "source", "true", "false", "return", "break", "\\", "${", "$",
    ]), 0..120)) {
        if let Ok(script) = parse(&words.join(" ")) {
            let all = interpret(&script, &Disk::default(), "hd0", "/grub");
            prop_assert!(all.entries().len() <= 256);
        }
    }

    /// A value reaches the kernel as it was quoted.
    #[test]
    fn quoted_values_are_kept(value in "[a-zA-Z0-9=,./:$\"{}#;&|<>!*?~ -]{1,40}") {
        let all = menu(&format!("menuentry x {{ linux /k '{value}' }}\n"), &[]);
        let line = started(&all).2;
        let unquoted = line.trim_start_matches("BOOT_IMAGE=/k ").replace("\\\"", "\u{1}").replace('"', "").replace('\u{1}', "\"");
        prop_assert_eq!(unquoted, value);
    }
}
