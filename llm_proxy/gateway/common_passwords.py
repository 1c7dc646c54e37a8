"""What people who guess passwords try first: words, names, runs on a keyboard, dates without a meaning of their own.

In lower case; a password counts as one of these with any digits and signs behind it, too (`passwords.check`). Drawn up
by hand for this program, and short: it stops what everybody tries, not what somebody who knows you does.
"""

from __future__ import annotations

from typing import Final

_WORDS: Final = """
    access account achilles admin administrator adminadmin alexander amanda amazon america andrea andrew android
    angel anthony apple applepie arsenal august austin autumn awesome baby babygirl bailey banana barcelona
    baseball basketball batman beach beautiful bigdog blabla blahblah blink blue bluebird bond boomer boston
    brandon bubbles buster butterfly california camaro captain carlos celtic chance changeit changeme change-me
    changethis charlie cheese chelsea chester chicago chicken chocolate chris christian christmas claude coffee
    college company computer cookie cookies cooper corvette cowboy cowboys crystal dakota dallas daniel danielle
    database debug december default demo denver diamond doctor dolphin donald dragon dreamer eagles elephant
    elizabeth eminem england europe excalibur falcon family fender ferrari fishing flower flowers football forever
    freedom friday friend friends galaxy garfield gateway genesis george germany giants ginger goldfish golden
    golfer google grandma guest guitar gunner hallo hammer hannah happy harley heather hello hellohello helloworld
    hockey holiday hottie hunter iceman iloveu iloveyou iloveyou! infinity internet ironman isabella jackson
    january jasmine jasper jennifer jessica jesus jesuschrist jonathan jordan joseph joshua julian junior justin
    killer kitten knight kristina ladybug lakers lauren leather legend letmein letmeinnow letmein! liverpool login
    london looking lovelove lovely loveme loverboy lovers lucky madison maggie magic manchester manager marina
    marine martin master matrix matthew maverick melissa mercedes merlin metallica michael michelle mickey midnight
    miller minecraft monday money monica monkey monster morgan mother mountain mustang mypassword mysecret naruto
    natasha nathan newyork nicholas nicole nintendo nirvana nopass nopassword nothing november october oliver
    openai opensesame orange p@55word p@55w0rd p@ssw0rd p@ssword packers panther paradise parola passe passion
    passport passw0rd password passwordpassword passwort patrick peaches peanut pepper phoenix player please
    pokemon police porsche pretty prince princess private purple qwerty qwertyuiop rachel raiders rainbow ranger
    rebecca redsox richard robert rocket root rootroot rosebud runner russia samantha samsung sandra saturday
    scooter scorpion secret secure security september server service session shadow shannon shopping silver simple
    skippy slipknot snoopy soccer sparky spiderman spring squirt startrek starwars steelers stella steven student
    summer sunday sunflower sunshine superman superstar support sysadmin system taylor teacher temp temporary
    tennis tequila test tester testing testpass testpassword testtest thomas thunder thursday tiger tigger
    tinkerbell token toor topsecret toyota trinity trustno trustnoone tucker tuesday turtle unknown user username
    vanessa veronica victoria viking vincent volcano wednesday welcome welcometo whatever william willow windows
    winner winston winter wizard xxxxxxxx yamaha yankees yellow zaq12wsx
"""

_KEYBOARD: Final = """
    0987654321 09876543 0123456789 012345678 01234567 1029384756 11111111 111111111 1111111111 112233445566
    11223344 1122334455 12121212 1212121212 123123123 12312312 123321123 123454321 12341234 1234512345 12344321
    12345678 123456789 1234567890 12345678910 1234567891 123456123456 12345679 12345654321 123qweasd 123qwe123
    13131313 13579246 135792468 147258369 147852369 159357159 159753159 18436572 1a2b3c4d 1q2w3e4r 1q2w3e4r5t
    1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc 1qazxsw2 20002000 20202020 22222222 2wsx3edc 31415926 314159265 33333333
    3141592653 44444444 55555555 66666666 69696969 77777777 78945612 789456123 87654321 876543210 88888888
    963852741 987654321 9876543210 98765432 99999999 a1b2c3d4 a1b2c3d4e5 aa123456 aaaa1111 abababab abc12345
    abc123abc abcabcabc abcd1234 abcd abcde abcdef abcdefg abcdefgh abcdefghi abcdefghij asdasdasd asdf1234
    asdfasdf asdfg asdfgh asdfghj asdfghjk asdfghjkl asdfjkl; azerty azertyuiop lkjhgfdsa mnbvcxz mnbvcxza
    poiuytrewq q1w2e3r4 q1w2e3r4t5 qazwsx qazwsxedc qazxsw qqww1122 qwe123qwe qweasd qweasdzxc qweqweqwe qwer1234
    qwerasdf qwerqwer qwert qwertyu qwertyui qwertyuio qwertz qwertzuiop wasdwasd wsxedcrfv zaqxsw zxcvbn zxcvbnm
    zxczxczxc zaq1zaq1 zaq1xsw2 zxcasdqwe 1234qwer 12qwaszx 4815162342
"""

COMMON: Final = frozenset(_WORDS.split()) | frozenset(_KEYBOARD.split())
