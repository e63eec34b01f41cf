package Tables;
# pf's tables, kept as files: tables/NAME holds the entries as printed, in pf's order; "index" holds "NAME FLAGS COUNT" per table.
# Flags as pfctl -vsT prints them: p persist, a active, r referenced by a rule.
use strict;
use warnings;
use lib '/usr/local/lib/pf';
use Addr;

my $dir = '/.lab/pf';

sub index_read {
    my %t;
    open my $f, '<', "$dir/index" or return \%t;
    while (<$f>) {
        my ($name, $flags, $count) = split;
        $t{$name} = { flags => $flags, count => $count };
    }
    return \%t;
}

sub index_write {
    my ($t) = @_;
    open my $f, '>', "$dir/index.new" or die "pfctl: $dir/index.new: $!\n";
    print $f "$_ $t->{$_}{flags} $t->{$_}{count}\n" for sort keys %$t;
    close $f or die "pfctl: $dir/index.new: $!\n";
    rename "$dir/index.new", "$dir/index" or die "pfctl: $dir/index: $!\n";
}

sub text {
    my ($name) = @_;
    open my $f, '<', "$dir/tables/$name" or return '';
    local $/;
    return scalar(<$f>) // '';
}

sub store {
    my ($name, $text) = @_;
    open my $f, '>', "$dir/tables/$name.new" or die "pfctl: $dir/tables/$name.new: $!\n";
    print $f $text;
    close $f or die "pfctl: $dir/tables/$name.new: $!\n";
    rename "$dir/tables/$name.new", "$dir/tables/$name" or die "pfctl: $dir/tables/$name: $!\n";
}

sub remove { unlink "$dir/tables/$_[0]" }

# normalise one string of entries ("!" negates, "#" starts a comment, blanks separate) -> ({ text => key }, bad entry or undef)
sub parse {
    my ($s) = @_;
    my %set;
    $s =~ s/#[^\n]*//g if index($s, '#') >= 0;
    for my $e (split ' ', $s) {
        if ($e =~ /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/ && $1 < 256 && $2 < 256 && $3 < 256 && $4 < 256 && $e !~ /(?:^|\.)0\d/) {
            $set{$e} = pack 'aC4C', '4', $1, $2, $3, $4, 32;    # the common case, in a hurry
            next;
        }
        my $not = $e =~ s/^!// ? '!' : '';
        my ($key, $text) = Addr::parse($e) or return (undef, $e);
        $set{"$not$text"} = $key;
    }
    return (\%set);
}

# print form: one entry a line, in the order of the keys
sub format_set {
    my ($set) = @_;
    return join '', map { "$_\n" } sort { $set->{$a} cmp $set->{$b} } keys %$set;
}

1;
